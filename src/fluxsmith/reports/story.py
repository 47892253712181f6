"""The story of one tensor: where its bytes come from, which rule and numbers apply, and where they go."""

from __future__ import annotations

from typing import Any

from fluxsmith.engine.plan import Adapt, Apply, Job, Load, Plan
from fluxsmith.errors import UsageError, did_you_mean
from fluxsmith.io.views import Extent

__all__ = ["find_jobs", "tell"]


def find_jobs(plan: Plan, key: str) -> list[Job]:
    """The jobs behind a tensor, named canonically or as in the output.

    Raises UsageError where there is no such tensor.
    """
    jobs = [job for job in plan.jobs if job.tensor == key]
    for number, file in enumerate(plan.files):
        entry = file.tensors.get(key)
        if entry is not None and not jobs:
            inside = range(entry.start, entry.stop)
            jobs = [job for job in plan.jobs if any(t.file == number and t.offset in inside for t in job.targets)]
    if not jobs:
        names = [job.tensor for job in plan.jobs] + [key for file in plan.files for key in file.tensors]
        raise UsageError(
            "usage.unknown-key", f"the result has no tensor `{key}`", hint=did_you_mean(key, names), fix="fluxsmith inspect FILE --keys '*'"
        )
    return jobs


def tell(plan: Plan, job: Job) -> list[str]:
    """Lines that tell the story of a job."""
    lines = [f"{job.tensor}  {list(job.shape)}" + (f"  block {job.block}" if job.block else "")]
    if job.origin:
        lines[0] += f"  from element {job.origin}"
    lines.append(f"  {job.action}" + (f" by {job.reason}" if job.reason else ""))
    for number, step in enumerate(job.program):
        lines += [f"  {line}" for line in _step(number, step)]
    for target in job.targets:
        file = plan.files[target.file]
        name = next(key for key, entry in file.tensors.items() if entry.start <= target.offset < max(entry.stop, entry.start + 1))
        lines.append(f"  -> {file.name}: {name} as {job.dtype}, {target.count} elements at byte {file.data_start + target.offset}")
    return lines


def _extent(extent: Extent) -> str:
    """The bytes that are read, and what they are."""
    stored = extent.stored
    codec = extent.codec
    what = f"{codec.kind} ({codec.scheme}), elements {extent.first}-{extent.first + extent.count}" if codec else extent.dtype
    return f"      {stored.file} bytes {stored.offset}-{stored.offset + stored.nbytes}  {what}"


def _step(number: int, step: Any) -> list[str]:
    if isinstance(step, Load):
        first = [f"[{number}] {step.model}, {list(step.view.shape)}"]
        return first + [_extent(extent) for extent in step.view.extents]
    if isinstance(step, Apply):
        options = ", ".join(f"{key} {_value(value)}" for key, value in step.options.items())
        inputs = ", ".join(f"[{i}]" for i in step.inputs)
        return [f"[{number}] {step.method}({inputs})" + (f"  {options}" if options else "")]
    if isinstance(step, Adapt):
        base = f" on [{step.base}]" if step.base is not None else ""
        first = [f"[{number}] {step.weight:g} x adapter {step.adapter}{base}"]
        return first + [f"      {part.module}  {part.algorithm}, scale {part.settings['scale']:g}" for part in step.parts]
    return [f"[{number}] zeros"]


def _value(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return f"{value:.9g}" if isinstance(value, float) else str(value)
