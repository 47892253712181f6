"""Running a plan: threads take tiles, evaluate them, check them, and write them at their final places."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fluxsmith.engine.devices import Device, open_device
from fluxsmith.engine.memory import threads_for
from fluxsmith.engine.plan import Apply, Job, Load, Plan
from fluxsmith.engine.schedule import Schedule, Task
from fluxsmith.engine.tiles import Files, Workspace, as_bytes
from fluxsmith.errors import IncompatibleError
from fluxsmith.io.dtypes import DTYPES
from fluxsmith.io.writer import Sink
from fluxsmith.methods import find_method

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Execution", "Outcome", "Settings"]

_AHEAD = 8  # tiles to read ahead
_LARGEST = {"F16": 65504.0, "F8_E4M3": 448.0, "F8_E5M2": 57344.0}


@dataclass(frozen=True)
class Settings:
    """How to run, none of which changes the bytes of the output. `memory` is a limit in bytes."""

    threads: int | None = None
    device: str = "cpu"
    memory: int | None = None
    allow_nonfinite: bool = False


@dataclass
class Outcome:
    """What a run found: elements that were too large for the output type, and inputs that the output is equal to."""

    seconds: float = 0.0
    saturated: dict[str, int] = field(default_factory=dict[str, int])
    equal_to: set[str] = field(default_factory=set[str])


class Execution:
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
        self.plan, self._sink, self._settings = plan, sink, settings
        self._on_bytes = on_bytes
        jobs = {i: job for i, job in enumerate(plan.jobs) if i not in skip}
        self._schedule = Schedule(jobs, on_job)
        self._files = Files()
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._compared = {i.name for i in plan.inputs} if len(plan.inputs) > 1 and not skip else set[str]()
        self.outcome = Outcome()
        self.stopped = False

    def stop(self) -> None:
        """Finish running tiles and return; safe from a signal handler's thread."""
        self.stopped = True
        self._schedule.stop()

    def run(self) -> Outcome:
        """Do the work; raises the first error that any thread met."""
        import torch

        begin = time.monotonic()
        needs = self.plan.needs
        wanted = self._settings.threads or min(os.cpu_count() or 1, 16)
        count = threads_for(needs.tile_bytes, needs.whole_bytes, wanted, self._settings.memory)
        kind = open_device(self._settings.device)
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # one tile is one thread's work; threads of threads would fight for the cores
        try:
            threads = [threading.Thread(target=self._work, args=(kind,)) for _ in range(count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)  # wakes up for signals
        finally:
            self.stop_threads(threads)
            torch.set_num_threads(before)
            self._files.close()
        if self._error is not None:
            raise self._error
        self.outcome.seconds = time.monotonic() - begin
        self.outcome.equal_to = self._compared
        return self.outcome

    def stop_threads(self, threads: list[threading.Thread]) -> None:
        """Leave no thread behind, also when the main thread is interrupted."""
        self._schedule.stop()
        for thread in threads:
            thread.join()

    def _work(self, kind: str) -> None:
        import torch

        compute = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}[self.plan.compute]
        try:
            with torch.inference_mode():
                space = Workspace(self._files, Device(kind), compute, self.plan.seed)
                while (task := self._schedule.next()) is not None:
                    self._read_ahead()
                    with space.device.session():
                        self._do(space, task)
                    self._schedule.done(task)
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
            self._schedule.stop()

    def _read_ahead(self) -> None:
        for task in self._schedule.upcoming(_AHEAD)[-1:]:
            for load in task.state.job.loads:
                if load.view.count == task.state.job.count:
                    self._files.expect(load.view, task.start, task.stop)

    def _do(self, space: Workspace, task: Task) -> None:
        if task.kind == "write":
            self._write(space, task)
        else:
            self._measure(space, task)

    def _measure(self, space: Workspace, task: Task) -> None:
        state, job = task.state, task.state.job
        step_index, _, measurement = state.waiting[0]
        step = job.program[step_index]
        assert isinstance(step, Apply)
        if task.kind == "sample":
            measurement.prepare(_sample(space, task, step, measurement.sample_size))
            return
        inputs = space.evaluate(job, task.start, task.stop, state.measured, step.inputs)
        if not self._settings.allow_nonfinite:
            for index, tile in zip(step.inputs, inputs, strict=True):
                _check_finite(tile, job, task.start, f"input {index}", job.program[index])
        measurement.visit(task.number, inputs)

    def _write(self, space: Workspace, task: Task) -> None:
        job = task.state.job
        plain = len(job.program) == 1 and job.action == "copied"
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

    def _compute(self, space: Workspace, task: Task) -> Tensor:
        job = task.state.job
        (result,) = space.evaluate(job, task.start, task.stop, task.state.measured)
        if not self._settings.allow_nonfinite:
            self._check_tile(space, task, result)
        out = space.typed("out", task.stop - task.start, job.dtype)
        limit = _LARGEST.get(job.dtype)
        if limit is not None:
            result = self._saturate(result, limit, job)
        space.device.download(result, out)
        return out

    def _check_tile(self, space: Workspace, task: Task, result: Tensor) -> None:
        """Stop at a value that is not finite, naming the input that has it where one does."""
        job = task.state.job
        careful = any(isinstance(s, Apply) and not find_method(s.method).propagates for s in job.program)
        if not careful and bool(result.sum().isfinite()):
            return
        for i, step in enumerate(job.program):
            if isinstance(step, Load) and step.view.count == job.count:
                tile = space.load(("check", i), step.view, task.start, task.stop)
                _check_finite(tile, job, task.start, step.model, step)
        _check_finite(result, job, task.start, "the result", None)

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
        if not self._compared:
            return
        import torch

        job = task.state.job
        same: set[str] = set()
        for i, step in enumerate(job.program):
            if isinstance(step, Load) and step.model in self._compared and step.view.dtypes == {job.dtype}:
                slot = "copy" if len(job.program) == 1 and job.action == "copied" else i
                stored = space.typed(slot, task.stop - task.start, job.dtype)
                if step.view.count == job.count and torch.equal(stored.view(torch.uint8), out.view(torch.uint8)):
                    same.add(step.model)
        with self._lock:
            self._compared &= same


def _sample(space: Workspace, task: Task, step: Apply, size: int) -> list[Tensor]:
    """A statistic's look at its inputs: short runs of elements, spread evenly over the tensor."""
    import torch

    job, runs = task.state.job, 64
    length = size // runs
    stride = job.count // runs
    parts: list[list[Tensor]] = []
    for i in range(runs):
        tiles = space.evaluate(job, i * stride, i * stride + length, task.state.measured, step.inputs)
        parts.append([tile.clone() for tile in tiles])
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def _check_finite(tile: Tensor, job: Job, start: int, who: str, step: object) -> None:
    """Raise where a tile has NaN or infinite values; the sum is asked first, as it costs least."""
    if bool(tile.sum().isfinite()):
        return
    bad = (~tile.isfinite()).nonzero().flatten()
    if len(bad) == 0:
        return
    reference = step.model if isinstance(step, Load) else who
    raise IncompatibleError(
        "values.not-finite",
        f"{reference} has {len(bad)} values that are not finite in `{job.tensor}`",
        facts={"key": job.tensor, "first": f"element {job.origin + start + int(bad[0])}: {float(tile[bad[0]])}"},
        fix="--allow-nonfinite merges them as they are",
    )
