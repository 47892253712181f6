"""What an algorithm is: the roles of its factors, and the delta that they mean.

    delta(factors, settings, rows, weight) -> Tensor [rows.count, *rows.shape[1:]], fp32

`factors` are fp32 tensors by role; those of `by_rows` hold only the rows asked for. `settings` are the module's
numbers. `weight` holds the base's rows (fp32) where the algorithm reads them: the same rows, or all of them.
The delta is what is added to the base's weight at strength 1; at strength w it is w times that (for algorithms
that are not linear in their factors this is the line between the base and the full effect).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Algorithm", "Delta", "Reads", "Rows", "Shapes"]

Shapes = Mapping[str, tuple[int, ...]]
Reads = Literal["nothing", "rows", "whole"]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows [start, stop) of a module's weight of `shape` (out, in, *kernel), or (out,) of a vector."""

    start: int
    stop: int
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return self.stop - self.start


Delta = Callable[["Mapping[str, Tensor]", Mapping[str, float], Rows, "Tensor | None"], "Tensor"]


@dataclass(frozen=True)
class Algorithm:
    """An algorithm.

    `roles` maps the last part of a key (after the module's name) to the role of the factor, for every way in which
    programs write it. `delta` is described above. `reads(shapes)` says what of the base the delta depends on: nothing,
    the same rows, or the whole weight. `by_rows` are the roles whose dim 0 is the module's out rows, of which only
    the rows of a tile are read. `shape(shapes)` is the shape of the weight that the factors make; None in place of a
    dim that they do not tell. Raises ValueError, saying what does not fit, where the factors do not go together.
    `biases` are such last parts of keys that belong to the bias beside the weight (a module of its own, of the algorithm
    that lists them); `numbers` are those of small tensors that are read when the file is opened: last part -> setting.
    `rank(shapes)` is the rank by which alpha is divided, None where there is none. `scale(alpha, rank, shapes)` is
    the factor that alpha means for files whose dialect has no rule of its own.
    """

    name: str
    title: str
    paper: str
    roles: Mapping[str, str]
    delta: Delta
    shape: Callable[[Shapes], tuple[int | None, ...]]
    reads: Callable[[Shapes], Reads] = lambda shapes: "nothing"
    by_rows: frozenset[str] = frozenset()
    biases: Mapping[str, str] = field(default_factory=dict[str, str])
    numbers: Mapping[str, str] = field(default_factory=lambda: {"alpha": "alpha"})
    rank: Callable[[Shapes], int | None] = lambda shapes: None
    scale: Callable[[float, int | None, Shapes], float] = lambda alpha, rank, shapes: alpha / rank if rank else 1.0
