"""The deltas of a plan, one canonical tensor at a time, each made modules as soon as it is complete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from fluxsmith.adapters.extracting.extraction import Options, extract_module
from fluxsmith.adapters.extracting.factorise import frobenius_squared
from fluxsmith.adapters.extracting.findings import LEFT_OUT, Finding
from fluxsmith.adapters.module import Span, Target
from fluxsmith.adapters.tensors import ModuleTensors
from fluxsmith.engine.execution import Execution, Settings
from fluxsmith.engine.memory import tile_elements
from fluxsmith.engine.plan import Job, Plan
from fluxsmith.engine.programs import program_has
from fluxsmith.engine.rounding import rounding_steps, rounding_tile
from fluxsmith.engine.schedule import Task
from fluxsmith.errors import IncompatibleError
from fluxsmith.io.writer import MemorySink
from fluxsmith.layouts import Canonical

if TYPE_CHECKING:
    from torch import Tensor

    from fluxsmith.engine.tiles import Workspace

__all__ = ["Deltas", "Piece"]

Piece = tuple[ModuleTensors | None, Finding]


@dataclass
class _Unit:
    """The delta of one canonical tensor while its jobs fill it, and by row the energy that rounding is expected to have."""

    delta: Tensor | None = None
    noise: Tensor | None = None
    left: int = 0


class Deltas(Execution):
    """One run over the deltas of a plan.

    `units` are the canonical tensors that are wanted; their places in it number them, and `skip` has the numbers of those
    that are done. `targets` says where a tensor's modules go, `keep` takes the modules of a unit by its number.
    """

    at_once = True

    def __init__(
        self, plan: Plan, units: Mapping[str, Canonical], targets: Callable[[Canonical], Sequence[Target]], options: Options,
        settings: Settings, *, skip: set[int], keep: Callable[[int, Sequence[Piece]], None], on_bytes: Callable[[int, Job], None],
    ) -> None:  # fmt: skip
        self._canonical = units
        self._numbers = {name: number for number, name in enumerate(units)}
        jobs = {i: job for i, job in enumerate(plan.jobs) if job.tensor in units and self._numbers[job.tensor] not in skip}
        super().__init__(plan, MemorySink(()), settings, skip=set(range(len(plan.jobs))) - set(jobs), on_bytes=on_bytes)
        self._targets, self._options, self._keep, self._on_written = targets, options, keep, on_bytes
        self._units: dict[str, _Unit] = {}
        for job in jobs.values():
            self._units.setdefault(job.tensor, _Unit()).left += 1

    def _do_in_turn(self, space: Workspace, task: Task) -> None:
        if task.kind != "write":
            super()._do_in_turn(space, task)
            return
        with self._slots:  # matrices are large: as many at once as memory was planned for
            self._do(space, task)
            space.forget()

    def _write(self, space: Workspace, task: Task) -> None:
        job = task.state.job
        unit = self._units[job.tensor]
        self._fill(space, task, unit)
        with self._lock:
            unit.left -= 1
            last = unit.left == 0
        if last:
            self._factorise(job, unit)
        self._on_written(4 * job.count, job)

    def _fill(self, space: Workspace, task: Task, unit: _Unit) -> None:
        """Compute the rows of a job into the delta of its tensor, tile by tile."""
        import torch

        job, canonical = task.state.job, self._canonical[task.state.job.tensor]
        steps = rounding_steps(job)
        with self._lock:
            if unit.delta is None:
                unit.delta = torch.empty(canonical.count, device=space.device.kind)
                rows = canonical.shape[0] if canonical.shape else 1
                unit.noise = None if steps is None else torch.zeros(rows, dtype=torch.float64)
        width = prod(canonical.shape[1:])
        size = job.count if program_has(job.program, "whole") else max(tile_elements(job) // width, 1) * width
        for start in range(0, job.count, size):
            stop = min(start + size, job.count)
            *inputs, result = space.evaluate(job, start, stop, task.state.measured, [*(steps or {}), len(job.program) - 1])
            at = job.origin + start
            unit.delta[at : at + stop - start].copy_(result)
            if unit.noise is not None and steps:
                unit.noise[at // width : (at + stop - start) // width] = rounding_tile(inputs, list(steps.values()), width)

    def _factorise(self, job: Job, unit: _Unit) -> None:
        """The modules of a tensor whose delta is complete."""
        assert unit.delta is not None
        canonical = self._canonical[job.tensor]
        if not self._settings.allow_nonfinite and not bool(unit.delta.sum().isfinite()):
            fix = "--allow-nonfinite takes them as they are"
            raise IncompatibleError("values.not-finite", f"the delta of `{job.tensor}` has values that are not finite", fix=fix)
        delta = unit.delta.reshape(canonical.shape[0] if canonical.shape else 1, -1)
        energy = frobenius_squared(delta)
        noise = None if unit.noise is None else float(unit.noise.sum())
        if energy == 0:
            pieces: list[Piece] = []
        elif len(canonical.shape) < 2 and not self._options.vectors:
            pieces = [(None, Finding(job.tensor, job.tensor, canonical.block, LEFT_OUT, None, energy, energy, noise))]
        else:
            pieces = self._modules(canonical, delta, unit.noise)
        self._keep(self._numbers[job.tensor], pieces)
        unit.delta = unit.noise = None

    def _modules(self, canonical: Canonical, delta: Tensor, noises: Tensor | None) -> list[Piece]:
        """The modules of every place that the dialect has for a tensor."""
        pieces: list[Piece] = []
        for target in self._targets(canonical):
            rows = _rows(delta, target.spans)
            noise = None if noises is None else float(_rows(noises, target.spans).sum())
            made = extract_module(target, rows, self._options, block=canonical.block, noise=noise)
            if made is not None:
                pieces.append(made)
        return pieces


def _rows(of: Tensor, spans: Sequence[Span]) -> Tensor:
    """The rows of a target, in its order; one span is a view."""
    import torch

    parts = [of[span.start : span.start + span.rows] for span in sorted(spans, key=lambda span: span.at)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
