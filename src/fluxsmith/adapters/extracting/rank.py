"""How many singular values of a delta an adapter keeps: rules over a spectrum s_1 >= s_2 >= ... that is known in part.

Every rule is the smallest k that satisfies it. A rule may be asked before the whole spectrum
is known: it answers when no later value can change the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isfinite, sqrt
from typing import Literal

from fluxsmith.errors import UsageError

__all__ = ["Kind", "RankRule", "fits_dense"]

Kind = Literal["rank", "threshold", "ratio", "cumulative", "energy"]
_SLACK = 1e-12  # sums of squares are rounded: a share that is met but for that is met


@dataclass(frozen=True, slots=True)
class RankRule:
    """A rule by which a rank is chosen.

    rank        k = `value`
    threshold   the number of s_i > `value`
    ratio       the number of s_i > `value` * s_1
    cumulative  the smallest k with sum_{i<=k} s_i >= `value` * sum s_i (nuclear norm)
    energy      the smallest k with sqrt(sum_{i<=k} s_i^2 / sum s_i^2) >= `value` (Frobenius norm)

    At least one is kept, and the result is rounded up to a multiple of `multiple`.
    Raises UsageError for a value that the rule cannot have.
    """

    kind: Kind = "rank"
    value: float = 32
    multiple: int = 1

    def __post_init__(self) -> None:
        whole = self.kind != "rank" or (self.value >= 1 and self.value == int(self.value))
        share = self.kind not in ("ratio", "cumulative", "energy") or 0 < self.value <= 1
        if not (isfinite(self.value) and whole and share and self.value >= 0):
            wanted = {"rank": "a whole number from 1 on", "threshold": "a number from 0 on"}.get(self.kind, "above 0 and at most 1")
            raise UsageError("usage.rank-rule", f"--{self.kind} {self.value:g}: it is {wanted}", fix=f"--{self.kind} {_EXAMPLE[self.kind]}")
        if self.multiple < 1:
            raise UsageError("usage.rank-rule", f"--rank-multiple {self.multiple}: it is from 1 on", fix="--rank-multiple 8")

    @property
    def guess(self) -> int:
        """How many singular values to look for at first."""
        return self._rounded(int(self.value)) if self.kind == "rank" else 32

    def choose(self, spectrum: Sequence[float], count: int, energy: float) -> int | None:
        """The rank for a matrix with `count` singular values, of which `spectrum` has the first, descending.

        `energy` is the sum of the squares of all of them. None where more of them have to be known. Never above
        `count`.
        """
        found = self._unrounded(spectrum, count, energy)
        return None if found is None else min(self._rounded(max(found, 1)), count)

    def _rounded(self, rank: int) -> int:
        return -(-rank // self.multiple) * self.multiple

    def _unrounded(self, s: Sequence[float], count: int, energy: float) -> int | None:
        known = len(s) >= count
        if self.kind == "rank":
            return int(self.value)
        if not s:
            return 0 if known else None
        if self.kind in ("threshold", "ratio"):
            limit = self.value * (s[0] if self.kind == "ratio" else 1)
            return sum(value > limit for value in s) if known or s[-1] <= limit else None
        if self.kind == "energy":
            total = sum(value * value for value in s) if known else energy
            return _first(s, [value * value for value in s], self.value**2 * total)
        return self._cumulative(s, count, energy)

    def _cumulative(self, s: Sequence[float], count: int, energy: float) -> int | None:
        """The nuclear norm of what is not known yet lies between tail^2 / s_last and sqrt(values left) * tail."""
        head, rest = sum(s), count - len(s)
        tail = sqrt(max(energy - sum(value * value for value in s), 0.0)) if rest else 0.0
        low = _first(s, s, self.value * (head + (tail * tail / s[-1] if s[-1] > 0 else 0.0)))
        high = _first(s, s, self.value * (head + sqrt(rest) * tail))
        return low if low == high else None


_EXAMPLE = {"rank": 32, "threshold": 0.01, "ratio": 0.1, "cumulative": 0.9, "energy": 0.95}


def _first(s: Sequence[float], parts: Sequence[float], wanted: float) -> int | None:
    """The smallest k whose first k parts add up to what is wanted; None where all of them do not."""
    limit = wanted * (1 - _SLACK)
    return next((k for k, total in enumerate(accumulate(parts), 1) if total >= limit), None)


def fits_dense(rank: int, rows: int, columns: int) -> bool:
    """Whether factors of this rank take as many numbers as the matrix itself, which is then stored instead."""
    return rank * (rows + columns) >= rows * columns
