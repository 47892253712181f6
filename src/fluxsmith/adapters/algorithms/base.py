"""What an algorithm is: the roles of its factors, and the delta that they mean.

    delta(factors, settings, rows, weight) -> Tensor [rows.count, *rows.shape[1:]], fp32

`factors` are fp32 tensors by role; those of `Algorithm.ranges` hold only the rows that it names. `settings` are the
module's numbers. `weight` holds the base's rows (fp32, with the module's trailing dims) where the algorithm reads them:
the same rows, or all of them.
The delta is what is added to the base's weight at strength 1; at strength w it is w times that (for algorithms
that are not linear in their factors this is the line between the base and the full effect).

Settings, by name:

    scale           multiplies the delta of LoRA, LoHa, LoKr, GLoRA and diff: alpha / rank, or what the dialect says
    alpha           as the file has it; only `scale` is computed with
    constraint      OFT, BOFT of LyCORIS: times the weight's out rows the largest norm of the rotation's generator, 0: none
    neumann_terms   OFT of PEFT: terms of the Cayley-Neumann series, 0: the exact Cayley transform
    coft            OFT of PEFT: eps of constrained OFT, the largest norm of all generators, 0: none
    on_input        (IA)^3: 1 where columns are scaled, 0 where rows are

Vocabularies (`Algorithm.stored`) are the two ways in which programs call the factors: `lycoris` (kohya's sd-scripts,
LyCORIS, OneTrainer, SimpleTuner) and `peft` (PEFT, diffusers, ai-toolkit, BFL).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import isinf, isnan
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Algorithm", "Delta", "Reads", "Rows", "Settings", "Shapes", "alpha_over_rank"]

Shapes = Mapping[str, tuple[int, ...]]
Settings = Mapping[str, float]
Reads = Literal["nothing", "rows", "whole"]
Names = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows [start, stop) of a module's weight of `shape` (out, in, *kernel), or (out,) of a vector."""

    start: int
    stop: int
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return self.stop - self.start


Delta = Callable[["Mapping[str, Tensor]", Settings, Rows, "Tensor | None"], "Tensor"]


def alpha_over_rank(alpha: float | None, rank: int | None, shapes: Shapes) -> float:
    """alpha / rank; an alpha that is 0 or missing is the rank. 1 where there is no rank, whatever alpha says: files of
    whole matrices have 10000 or infinity there.

    Raises ValueError where alpha is not a number, or not finite beside a rank.
    """
    if alpha is not None and (isnan(alpha) or (rank and isinf(alpha))):
        raise ValueError(f"alpha {alpha:g}")
    return alpha / rank if alpha and rank else 1.0


@dataclass(frozen=True)
class Algorithm:
    """An algorithm.

    `stored` has for each vocabulary the last part of the key (after the module's name) of every role, `aliases` are
    such last parts that are read, but never written -> role. `biases` are last parts of keys that belong to the bias
    beside the weight (a module of its own, of the algorithm that lists them); `numbers` are those of small tensors that
    are read when the file is opened: last part -> setting. `matches(parts)` says by the shapes of all last parts of a
    module (the numbers', too) whether it is of this algorithm, where names alone do not.

    `delta` is described above. `reads(shapes)` says what of the base the delta depends on: nothing, the same rows,
    or the whole weight, beside which it then holds up to three more of that size in fp32. `shape(shapes)` is the shape of
    the weight that the factors make: (out, in, *kernel), or (out, in * kernel) where they tell no more, or (out,); None in
    place of a dim that they do not tell. Raises ValueError, saying what does not fit, where the factors do not go together,
    KeyError where one is missing. `suits(shapes, settings, weight)` says whether they go with a weight of that shape, where
    `shape` could not.
    `by_rows(shapes, settings)` are the roles whose dim 0 is the weight's rows, so that rows of those are a module for these
    rows; None where rows of the weight are no rows of factors. `tiles(shapes, rows)` is `ranges` where it is more
    than that.
    `rank(shapes)` is the rank by which alpha is divided, None where there is none. `scale(alpha, rank, shapes)` is
    the factor that alpha means for files whose dialect has no rule of its own. `turns_bias(shapes, settings)` says that the
    same factors change the bias beside the weight, too, as a vector of its rows.
    """

    name: str
    title: str
    paper: str
    stored: Mapping[str, Names]
    delta: Delta
    shape: Callable[[Shapes], tuple[int | None, ...]]
    aliases: Names = field(default_factory=dict[str, str])
    biases: Names = field(default_factory=dict[str, str])
    numbers: Names = field(default_factory=lambda: {"alpha": "alpha"})
    matches: Callable[[Shapes], bool] = lambda parts: True
    reads: Callable[[Shapes], Reads] = lambda shapes: "nothing"
    by_rows: Callable[[Shapes, Settings], frozenset[str] | None] = lambda shapes, settings: frozenset()
    tiles: Callable[[Shapes, Rows], Mapping[str, tuple[int, int]]] | None = None
    rank: Callable[[Shapes], int | None] = lambda shapes: None
    scale: Callable[[float | None, int | None, Shapes], float] = alpha_over_rank
    suits: Callable[[Shapes, Settings, tuple[int, ...]], bool] = lambda shapes, settings, weight: True
    turns_bias: Callable[[Shapes, Settings], bool] = lambda shapes, settings: False

    @cached_property
    def roles(self) -> Names:
        """Last part of a key -> role, for every way in which programs write it."""
        return {last: role for words in self.stored.values() for role, last in words.items()} | dict(self.aliases)

    def ranges(self, shapes: Shapes, settings: Settings, rows: Rows) -> Mapping[str, tuple[int, int]]:
        """The rows (dim 0) of factors that the delta of `rows` is made of, as role -> (start, stop); of roles that are not
        named, all rows are."""
        if self.tiles is not None:
            return self.tiles(shapes, rows)
        return dict.fromkeys(self.by_rows(shapes, settings) or (), (rows.start, rows.stop))
