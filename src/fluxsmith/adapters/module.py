"""What an adapter is once its keys are understood: modules, each with an algorithm, factors, numbers and a target.

Nothing but small numbers (alpha) has been read: factors are views of the file's bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.views import View

__all__ = ["Adapter", "Module", "Span", "Target"]


@dataclass(frozen=True, slots=True)
class Span:
    """Rows [at, at + rows) of a module's weight are rows [start, start + rows) of the canonical tensor."""

    at: int
    start: int
    rows: int


@dataclass(frozen=True, slots=True)
class Target:
    """The tensor that a module changes, as it lay in the model while the adapter was trained.

    `tensor` is the canonical name, `layout` and `stored` are the layout and the name there (with suffix), `shape` is
    that of the module's weight (out, in, *kernel), or (out,) of a vector. `spans` cover all its rows, in order.
    `parts` are the first and last of the named parts that it is, None where it is the whole stored tensor.
    """

    tensor: str
    component: str
    layout: str
    stored: str
    shape: tuple[int, ...]
    spans: tuple[Span, ...]
    parts: tuple[int, int] | None = None

    @property
    def count(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Module:
    """What an adapter holds for one tensor.

    `name` is what the file calls it, `factors` maps an algorithm's roles (up, down, w1, ...) to bytes, `settings` has
    the numbers that belong to them, of which `scale` multiplies the delta (1 where an algorithm has none). `sources`
    are the keys of the file that it is made of.
    """

    name: str
    algorithm: str
    factors: Mapping[str, View]
    settings: Mapping[str, float]
    target: Target
    sources: tuple[str, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the factors by role."""
        return {role: view.shape for role, view in self.factors.items()}


@dataclass(frozen=True)
class Adapter:
    """An adapter opened by its headers.

    `modules` are those of all components. `dropped` says of every key that is in no module why (a rule, or that it
    is known to mean nothing); `notes` are what a user should know. `score` is the share of keys that the dialect
    explained, `rivals` are other readings with theirs. `metadata` is what its sidecar says, as plain data. `widens` are
    the tensors (canonical name -> shape) that have more columns than the base's: those are to be added, as zeros.
    """

    checkpoint: Checkpoint
    dialect: str
    family: str
    score: float
    modules: tuple[Module, ...]
    dropped: Mapping[str, str] = field(default_factory=dict[str, str])
    notes: tuple[str, ...] = ()
    rivals: Mapping[str, float] = field(default_factory=dict[str, float])
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    widens: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, "tuple[int, ...]"])

    @property
    def components(self) -> tuple[str, ...]:
        """The components that it changes, in the order of their first module."""
        return tuple(dict.fromkeys(module.target.component for module in self.modules))
