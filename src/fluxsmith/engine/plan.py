"""A plan: a recipe resolved against real headers. Pure data, without torch; it can be written as JSON.

Every output tensor is made by jobs. A job is a range of rows of one canonical tensor with a *program*: a list of steps,
each using the results of earlier ones, the last being what is written. Programs are evaluated tile by tile.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from fluxsmith.io.checkpoint import WeightFile
from fluxsmith.io.shards import OutputFile
from fluxsmith.io.views import Extent, View

__all__ = ["Apply", "Fill", "Input", "Job", "Load", "Needs", "Plan", "Step", "Target"]


@dataclass(frozen=True, slots=True)
class Load:
    """Bytes of an input; `model` is the input's name."""

    model: str
    view: View


@dataclass(frozen=True, slots=True)
class Fill:
    """A tensor of one number."""

    shape: tuple[int, ...]
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Apply:
    """A method on the results of earlier steps, its options resolved to numbers and words.

    `tensors` are the options that are results of earlier steps, one or a tuple of them.
    """

    method: str
    inputs: tuple[int, ...]
    options: Mapping[str, Any]
    tensors: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict[str, Any])

    @property
    def uses(self) -> tuple[int, ...]:
        """Every earlier step that is used."""
        others = (index for value in self.tensors.values() for index in (value if isinstance(value, tuple) else (value,)))
        return (*self.inputs, *others)


Step = Load | Fill | Apply


@dataclass(frozen=True, slots=True)
class Target:
    """Elements [start, start + count) of a job go to byte `offset` of the tensor data of output file `file`."""

    file: int
    offset: int
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Job:
    """One unit of work: rows of canonical tensor `tensor` from element `origin` on, written as `dtype`.

    `action` is what happens, in one word, for accounting: merged, copied, converted or filled. `reason` names the rule
    or policy where it was not the merge itself.
    """

    tensor: str
    origin: int
    shape: tuple[int, ...]
    program: tuple[Step, ...]
    dtype: str
    targets: tuple[Target, ...]
    action: str
    reason: str = ""
    block: str | None = None

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def loads(self) -> list[Load]:
        return [step for step in self.program if isinstance(step, Load)]


@dataclass(frozen=True)
class Input:
    """What is known of one input, and what becomes of its tensors (counts by outcome)."""

    name: str
    reference: str
    family: str
    layout: str
    prefix: str
    guidance: bool | None
    tensors: int
    nbytes: int
    dtypes: tuple[str, ...]
    files: tuple[WeightFile, ...]
    outcome: Mapping[str, int] = field(default_factory=dict[str, int])
    license: str = "unknown"


@dataclass(frozen=True)
class Needs:
    """What a run takes: bytes read and written, and the largest memory of one tile of one thread."""

    read: int
    written: int
    disk: int
    tile_bytes: int
    whole_bytes: int


@dataclass(frozen=True)
class Plan:
    """Everything a run does. `folder` says whether the output is a folder; `small_files` go beside the weights, and
    `copies` of an input's other files (name -> path), such as tokenizers.
    """

    title: str
    formula: str
    family: str
    layout: str
    folder: bool
    inputs: tuple[Input, ...]
    jobs: tuple[Job, ...]
    files: tuple[OutputFile, ...]
    metadata: Mapping[str, str]
    small_files: Mapping[str, str]
    config: Mapping[str, Any] | None
    seed: int
    compute: str
    needs: Needs
    recipe: str
    notes: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict[str, str])

    def digest(self) -> str:
        """A hash of all that decides the output's bytes; two runs with one digest may share their work."""
        stamps = [(file.path, file.stamp) for i in self.inputs for file in i.files]
        facts = [self.jobs, self.files, self.seed, self.compute, stamps, dict(self.metadata)]
        return hashlib.sha256(json.dumps(facts, default=_plain).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        return json.loads(json.dumps(self, default=_plain))

    @staticmethod
    def count_actions(jobs: "tuple[Job, ...]") -> dict[str, int]:
        """Canonical tensors by what happens to them."""
        found: dict[str, set[str]] = {}
        for job in jobs:
            label = f"{job.action} ({job.reason})" if job.reason else job.action
            found.setdefault(label, set()).add(job.tensor)
        return {label: len(names) for label, names in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Extent):
        plain = [value.file, value.offset, value.count, value.dtype]
        return plain if value.codec is None else [*plain, value.codec, value.first]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = {"kind": type(value).__name__} if isinstance(value, (Load, Fill, Apply)) else {}
        return name | {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    raise TypeError(f"{type(value)} in a plan")
