"""A plan: a recipe resolved against real headers. Pure data, without torch; it can be written as JSON.

Every output tensor is made by jobs. A job is a range of rows of one canonical tensor with a *program*: a list of steps,
each using the results of earlier ones, the last being what is written. Programs are evaluated tile by tile.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from fluxsmith.adapters.module import Span
from fluxsmith.errors import IncompatibleError
from fluxsmith.io.checkpoint import WeightFile
from fluxsmith.io.dtypes import BLOCK_TYPES
from fluxsmith.io.shards import OutputFile
from fluxsmith.io.views import Extent, View

__all__ = [
    "Adapt",
    "Apply",
    "Constant",
    "Fill",
    "Input",
    "Job",
    "Load",
    "Needs",
    "Part",
    "Plan",
    "REST",
    "Scaling",
    "Step",
    "Target",
    "uses",
]

#: The reason of jobs that copy what the merge does not make.
REST = "rest"


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


@dataclass(frozen=True, slots=True)
class Part:
    """The delta of one module of an adapter: algorithm, factors and numbers; `shape` is that of the module's weight,
    `spans` say which rows of it are which rows of the tensor. `reads` is what it reads of the base: nothing, the same
    rows, or the whole weight."""

    module: str
    algorithm: str
    factors: Mapping[str, View]
    settings: Mapping[str, float]
    shape: tuple[int, ...]
    spans: tuple[Span, ...]
    reads: str = "nothing"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the factors by role."""
        return {role: view.shape for role, view in self.factors.items()}


@dataclass(frozen=True, slots=True)
class Adapt:
    """The delta of an adapter for a tensor of `shape`, times `weight`; `base` is the step of the weights that it reads."""

    adapter: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    weight: float = 1.0
    base: int | None = None

    @property
    def uses(self) -> tuple[int, ...]:
        """Every earlier step that is used."""
        return () if self.base is None else (self.base,)

    @property
    def rows(self) -> bool:
        """Deltas are made of whole rows."""
        return True

    @property
    def whole(self) -> bool:
        """Whether a part reads all of the weight."""
        return any(part.reads == "whole" for part in self.parts)

    def cut(self, start: int, stop: int) -> "Adapt":
        """The same for rows [start, stop) of the tensor alone.

        Raises IncompatibleError where a part reads the whole of a weight that these rows are only some of.
        """
        parts: list[Part] = []
        for part in self.parts:
            spans = [
                Span(span.at + max(start - span.start, 0), max(span.start, start) - start, rows)
                for span in part.spans
                if (rows := min(span.start + span.rows, stop) - max(span.start, start)) > 0
            ]
            if spans and part.reads == "whole" and sum(span.rows for span in spans) < part.shape[0]:
                raise IncompatibleError(
                    "adapter.parts-of-a-whole",
                    f"`{part.module}` of `{self.adapter}` reads a whole weight, whose parts (q, k, v, mlp) are treated in different ways",
                    facts={"algorithm": part.algorithm, "module": part.module},
                    fix="give one number for the whole tensor: a block (double.0) or a name (*.qkv.*), not q, k, v or mlp",
                )
            if spans:
                parts.append(replace(part, spans=tuple(spans)))
        return replace(self, shape=(stop - start, *self.shape[1:]), parts=tuple(parts))


Step = Load | Fill | Apply | Adapt


def uses(step: Step) -> tuple[int, ...]:
    """The earlier steps that a step needs."""
    return step.uses if isinstance(step, (Apply, Adapt)) else ()


@dataclass(frozen=True, slots=True)
class Scaling:
    """Elements are stored divided by a scale: one for every `size` consecutive elements, or (None) for a whole output
    tensor. Scales are of type `dtype`."""

    size: int | None
    dtype: str


@dataclass(frozen=True, slots=True)
class Target:
    """Elements [start, start + count) of a job go to byte `offset` of the tensor data of output file `file`, and the first
    of their scales to the place `scale` (file, byte). Targets of one output tensor have the same number `tensor`."""

    file: int
    offset: int
    start: int
    count: int
    scale: tuple[int, int] | None = None
    tensor: int = 0


@dataclass(frozen=True, slots=True)
class Constant:
    """Bytes (in hexadecimal digits) that stand at `offset` of the tensor data of output file `file`, whatever the inputs."""

    file: int
    offset: int
    digits: str


@dataclass(frozen=True, slots=True)
class Job:
    """One unit of work: rows of canonical tensor `tensor` from element `origin` on, written as `dtype`.

    `action` is what happens, in one word, for accounting: merged, copied, converted or filled. `reason` names the rule
    or policy where it was not the merge itself. `scaling` says how numbers are scaled before they are rounded to `dtype`.
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
    scaling: Scaling | None = None

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def quantised(self) -> bool:
        """Whether the elements are stored as multiples of scales."""
        return self.scaling is not None or self.dtype in BLOCK_TYPES

    @property
    def unit(self) -> int:
        """How many consecutive elements are stored together, sharing a scale that they alone decide."""
        if self.dtype in BLOCK_TYPES:
            return BLOCK_TYPES[self.dtype].block
        return (self.scaling.size or 1) if self.scaling else 1

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
    `copies` of an input's other files (name -> path), such as tokenizers. `scheme` names how weights are quantised, and
    `constants` are bytes that it stores beside them.
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
    scheme: str = ""
    constants: tuple[Constant, ...] = ()

    def digest(self) -> str:
        """A hash of all that decides the output's bytes; two runs with one digest may share their work."""
        stamps = [(file.path, file.stamp) for i in self.inputs for file in i.files]
        facts = [self.jobs, self.files, self.constants, self.seed, self.compute, stamps, dict(self.metadata)]
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
        name = {"kind": type(value).__name__} if isinstance(value, (Load, Fill, Apply, Adapt)) else {}
        return name | {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    raise TypeError(f"{type(value)} in a plan")
