"""Running a plan: threads take tiles, evaluate them, check them, and write them at their final places."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fluxsmith.engine.adapting import check_factors
from fluxsmith.engine.memory import row_elements
from fluxsmith.engine.plan import REST, Adapt, Apply, Job, Load, Plan
from fluxsmith.engine.quantising import QuantisationErrors, note_largest, write_quantised
from fluxsmith.engine.schedule import Task
from fluxsmith.engine.streaming import Settings, Streaming
from fluxsmith.engine.tiles import Workspace, as_bytes
from fluxsmith.errors import IncompatibleError
from fluxsmith.io.codecs.fp8 import values_of_fp8
from fluxsmith.io.dtypes import DTYPES
from fluxsmith.io.writer import Sink
from fluxsmith.methods import find_method

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Execution", "Outcome", "Settings"]

_LARGEST = {"F16": 65504.0, "F8_E4M3": 448.0, "F8_E5M2": 57344.0}
_ROUGH = ("F8_E4M3", "F8_E5M2")  # types that are rounded to without a scale, and whose errors are worth knowing
_LARGEST_BF16 = 3.3895313892515355e38  # a hair below that of float32, which alone can pass it


SAMPLE = 1 << 17  # elements of a tensor by which a run judges how far the result is from each input


@dataclass
class Outcome:
    """What a run found: elements that were too large for the output type, inputs that the output is equal to, and how far
    it is from each input: sums of (out - in)^2 and in^2 over the first SAMPLE elements of every merged tensor, by block
    (outside of blocks: by the first word of the name) and input; and what was lost by quantising."""

    seconds: float = 0.0
    saturated: dict[str, int] = field(default_factory=dict[str, int])
    equal_to: set[str] = field(default_factory=set[str])
    distances: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict[str, "dict[str, tuple[float, float]]"])
    errors: QuantisationErrors = field(default_factory=QuantisationErrors)


class Execution(Streaming):
    """One run of a plan into a sink. `run()` returns when all is written or `stop()` was called."""

    def __init__(
        self,
        plan: Plan,
        sink: Sink,
        settings: Settings,
        *,
        skip: frozenset[int] | set[int] = frozenset(),
        on_job: Callable[[int], None] = lambda job: None,
        on_bytes: Callable[[int, Job], None] = lambda count, job: None,
    ) -> None:
        jobs = {i: job for i, job in enumerate(plan.jobs) if i not in skip}
        compute = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}[plan.compute]
        super().__init__(jobs, settings, compute=compute, seed=plan.seed, on_job=on_job)
        self.plan, self._sink, self._on_bytes = plan, sink, on_bytes
        merged = {load.model for job in plan.jobs if job.reason != REST for load in job.loads}
        self._compared = merged if len(plan.inputs) > 1 and not skip else set[str]()
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Do the work; raises the first error that any thread met."""
        begin = time.monotonic()
        for constant in self.plan.constants:
            self._sink.write(constant.file, constant.offset, memoryview(bytes.fromhex(constant.digits)))
        self._stream(self.plan.needs.tile_bytes, self.plan.needs.whole_bytes)
        self.outcome.seconds = time.monotonic() - begin
        self.outcome.equal_to = self._compared
        return self.outcome

    def _do(self, space: Workspace, task: Task) -> None:
        if task.kind == "write" and task.state.job.quantised:
            self._quantise(space, task)
        elif task.kind == "write":
            self._write(space, task)
        elif task.kind == "scale":
            note_largest(task, self._to_quantise(space, task))
        else:
            self._measure(space, task)

    def _measure(self, space: Workspace, task: Task) -> None:
        state, job = task.state, task.state.job
        index, measurement = state.waiting[0][0], state.measurement
        step = job.program[index]
        assert isinstance(step, Apply) and measurement is not None
        if task.kind == "sample":
            measurement.prepare(_sample(space, task, index, measurement.sample_size))
            return
        inputs = space.given(job, index, task.start, task.stop, state.measured)
        if not self._settings.allow_nonfinite:
            for tile in inputs:
                if not bool(tile.sum().isfinite()):
                    self._check_loads(space, task)
                    _check_finite(tile, job, task.start, f"what {step.method} is given", None)
        measurement.visit(task.number, inputs, space.drawn(job, index, task.start))

    def _write(self, space: Workspace, task: Task) -> None:
        job = task.state.job
        plain = len(job.program) == 1 and job.action == "copied"
        space = space.exact() if job.action == "converted" else space
        out = self._copy(space, task) if plain else self._compute(space, task)
        self._compare(space, task, out)
        data = as_bytes(out)
        width = DTYPES[job.dtype].bits // 8
        for target in job.targets:
            first, last = max(target.start, task.start), min(target.start + target.count, task.stop)
            if first < last:
                part = data[(first - task.start) * width : (last - task.start) * width]
                self._sink.write(target.file, target.offset + (first - target.start) * width, part)
        self._on_bytes(len(data), job)

    def _quantise(self, space: Workspace, task: Task) -> None:
        job = task.state.job
        values = self._to_quantise(space, task, note=True)
        self._compare_values(space, task, values)
        self._on_bytes(write_quantised(task, values, self._sink, self.outcome.errors), job)

    def _to_quantise(self, space: Workspace, task: Task, *, note: bool = False) -> Tensor:
        """A tile's values in float32, wherever they were computed."""
        space = space.exact() if task.state.job.action == "converted" else space
        return self._result(space, task, note=note).float().cpu()

    def _copy(self, space: Workspace, task: Task) -> Tensor:
        """Bytes as they are."""
        job = task.state.job
        load = job.program[0]
        assert isinstance(load, Load)
        stored = space.typed("copy", task.stop - task.start, job.dtype)
        space.files.read(load.view, task.start, task.stop, as_bytes(stored))
        if DTYPES[job.dtype].is_float and not self._settings.allow_nonfinite:
            _check_finite(stored.float() if DTYPES[job.dtype].bits < 16 else stored, job, task.start, load.model, load)
        return stored

    def _result(self, space: Workspace, task: Task, *, note: bool = True) -> Tensor:
        """What a program gives on a tile, checked; with `note` its distances to the inputs are taken down."""
        job = task.state.job
        checked = [] if self._settings.allow_nonfinite else _unchecked_loads(job, task.state.measured)
        sampled = _loads_alike(job) if note and task.start == 0 and job.origin == 0 else []
        *inputs, result = space.evaluate(job, task.start, task.stop, task.state.measured, [*checked, *sampled, len(job.program) - 1])
        for index, tile in zip(checked, inputs, strict=False):
            _check_finite(tile, job, task.start, "an input", job.program[index])
        if not self._settings.allow_nonfinite:
            self._check_tile(space, task, result)
        self._note_distances(job, sampled, inputs[len(checked) :], result)
        return result

    def _compute(self, space: Workspace, task: Task) -> Tensor:
        import torch

        job, result = task.state.job, self._result(space, task)
        out = space.typed("out", task.stop - task.start, job.dtype)
        limit = _limit(job)
        fitting = result if limit is None else self._saturate(result, limit, job)
        space.device.download(fitting, out)
        if job.dtype in _ROUGH:
            self.outcome.errors.note(job, task.start, result.float().cpu(), values_of_fp8(out.view(torch.uint8), out.dtype))
        return out

    def _note_distances(self, job: Job, indices: Sequence[int], tiles: Sequence[Tensor], result: Tensor) -> None:
        """Add the head of a tensor to what is known of the distances between the result and its inputs."""
        found: dict[str, tuple[float, float]] = {}
        head = result[:SAMPLE].float()
        for index, tile in zip(indices, tiles, strict=True):
            load, part = job.program[index], tile[:SAMPLE].float()
            assert isinstance(load, Load)
            difference = head - part
            found[load.model] = float(difference.dot(difference)), float(part.dot(part))
        if not found:
            return
        with self._lock:
            block = self.outcome.distances.setdefault(job.block or job.tensor.split(".")[0], {})
            for name, (moved, size) in found.items():
                before = block.get(name, (0.0, 0.0))
                block[name] = before[0] + moved, before[1] + size

    def _check_tile(self, space: Workspace, task: Task, result: Tensor) -> None:
        """Stop at a value that is not finite, naming the input that has it where one does."""
        if not bool(result.sum().isfinite()):
            self._check_loads(space, task)
            _check_finite(result, task.state.job, task.start, "the result", None)

    def _check_loads(self, space: Workspace, task: Task) -> None:
        """Stop at a value of an input that is not finite."""
        job = task.state.job
        for i, step in enumerate(job.program):
            if isinstance(step, Adapt):
                check_factors(space, step)
            if isinstance(step, Load) and step.view.count == job.count:
                tile = space.load(("check", i), step.view, task.start, task.stop)
                _check_finite(tile, job, task.start, step.model, step)

    def _saturate(self, result: Tensor, limit: float, job: Job) -> Tensor:
        """Values beyond the output type's largest become that value and are counted."""
        result = result.float()
        count = int((result.abs() > limit).count_nonzero())
        if count:
            with self._lock:
                self.outcome.saturated[job.tensor] = self.outcome.saturated.get(job.tensor, 0) + count
            result = result.clamp(-limit, limit)
        return result

    def _compare(self, space: Workspace, task: Task, out: Tensor) -> None:
        """Which inputs the output is still equal to, byte for byte: a merge that changed nothing must be seen."""
        if not self._compared or task.state.job.reason == REST:
            return
        import torch

        job = task.state.job
        same: set[str] = set()
        for i, step in enumerate(job.program):
            if isinstance(step, Load) and step.model in self._compared and step.view.stores(job.dtype):
                slot = "copy" if len(job.program) == 1 and job.action == "copied" else i
                stored = space.typed(slot, task.stop - task.start, job.dtype)
                if step.view.count == job.count and torch.equal(stored.view(torch.uint8), out.view(torch.uint8)):
                    same.add(step.model)
        with self._lock:
            self._compared &= same

    def _compare_values(self, space: Workspace, task: Task, values: Tensor) -> None:
        """The same where the output is quantised: which inputs have just the values that were to be stored."""
        job, same = task.state.job, set[str]()
        for step in job.loads:
            if step.model in self._compared and step.view.count == job.count:
                stored = space.load("compared", step.view, task.start, task.stop)
                if bool((stored.float().cpu() == values).all()):
                    same.add(step.model)
        with self._lock:
            self._compared &= same


def _loads_alike(job: Job) -> list[int]:
    """The loads of a merged tensor that are as large as the tensor itself."""
    alike = [i for i, step in enumerate(job.program) if isinstance(step, Load) and step.view.count == job.count]
    return alike if job.action == "merged" else []


def _unchecked_loads(job: Job, measured: Mapping[int, Mapping[str, object]]) -> list[int]:
    """The loads whose NaN might not come out of the program: of methods that hide them and have not measured them."""
    for index, step in enumerate(job.program):
        if not isinstance(step, Apply) or find_method(step.method).propagates:
            continue
        if all(value is None for value in measured.get(index, {}).values()):
            return [i for i, load in enumerate(job.program) if isinstance(load, Load) and load.view.count == job.count]
    return []


def _sample(space: Workspace, task: Task, index: int, size: int) -> list[Tensor]:
    """A statistic's look at its inputs: short runs of elements (or rows), spread evenly over the tensor."""
    import torch

    job, runs = task.state.job, 64
    unit = row_elements(job)
    length = max(size // runs // unit, 1) * unit
    stride = job.count // runs // unit * unit
    parts: list[list[Tensor]] = []
    for i in range(runs if stride else 1):
        tiles = space.given(job, index, i * stride, i * stride + length, task.state.measured)
        parts.append([tile.clone() for tile in tiles])
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def _limit(job: Job) -> float | None:
    """The largest value that the output type has, None where the inputs' own types have no larger ones."""
    if job.dtype == "BF16" and any(load.view.coded or load.view.dtypes & {"F32", "F64"} for load in job.loads):
        return _LARGEST_BF16
    return _LARGEST.get(job.dtype)


def _check_finite(tile: Tensor, job: Job, start: int, who: str, step: object) -> None:
    """Raise where a tile has NaN or infinite values; the sum is asked first, as it costs least."""
    if bool(tile.sum().isfinite()):
        return
    bad = (~tile.isfinite()).nonzero().flatten()
    if len(bad) == 0:
        return
    first = start + int(bad[0])
    facts = {"key": job.tensor}
    if isinstance(step, Load):
        who, facts = step.model, {"file": next(step.view.cut(first, first + 1)).file, **facts}
    raise IncompatibleError(
        "values.not-finite",
        f"{who} has {len(bad)} {'value that is' if len(bad) == 1 else 'values that are'} not finite in `{job.tensor}`",
        facts={**facts, "first": f"element {job.origin + first}: {float(tile[bad[0]])}"},
        fix="--allow-nonfinite merges them as they are",
    )
