"""What the numbers of a checkpoint are like: magnitudes, zeros, values that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fluxsmith.analysis.survey import CHUNK, Progress, Row, is_readable, product, survey
from fluxsmith.engine.streaming import Settings

if TYPE_CHECKING:
    from fluxsmith.analysis.survey import Tile
    from fluxsmith.io.views import View

__all__ = ["Values", "measure_values"]


@dataclass(frozen=True)
class Values:
    """Elements as they are stored (without the scales of a quantised file). Magnitudes are those of finite ones."""

    count: int
    mean_abs: float
    rms: float
    max_abs: float
    zeros: int
    nonfinite: int

    @property
    def zero_share(self) -> float:
        return self.zeros / self.count if self.count else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "zero_share": self.zero_share}


def measure_values(
    views: Mapping[str, View], groups: Mapping[str, str], *, settings: Settings | None = None, progress: Progress | None = None
) -> dict[str, Values]:
    """The values of tensors by group (`groups`: key -> group), read in tiles. Keys without a group are left out, and
    those whose type holds no plain numbers (complex, sub-byte).

    Raises what `survey` raises.
    """
    loads = {key: (views[key],) for key in groups if is_readable(views[key])}
    rows: dict[str, list[Row]] = {}
    for key, found in survey(loads, _look, settings=settings, progress=progress).items():
        rows.setdefault(groups[key], []).extend(found)
    counts: dict[str, int] = {}
    for key, (view,) in loads.items():
        counts[groups[key]] = counts.get(groups[key], 0) + view.count
    order = dict.fromkeys(groups.values())
    return {group: _fold(rows[group], counts[group]) for group in order if group in counts}


def _look(tile: Tile) -> Row:
    """Sum of magnitudes, sum of squares, largest magnitude, zeros, values that are not finite."""
    return _add(_look_at(tile[i : i + CHUNK]) for i in range(0, len(tile), CHUNK))


def _look_at(part: Tile) -> Row:
    import numpy as np

    wide = np.abs(part, dtype=np.float64)
    squares, largest, bad = product(wide, wide), float(wide.max()), 0
    if not math.isfinite(largest):
        finite = np.isfinite(wide)
        bad = len(wide) - int(np.count_nonzero(finite))
        wide = np.where(finite, wide, 0.0)
        squares, largest = product(wide, wide), float(wide.max())
    zeros = int(np.count_nonzero(part == 0))
    return float(wide.sum()), squares, largest, float(zeros), float(bad)


def _add(rows: Iterable[Row]) -> Row:
    sums, squares, largest, zeros, bad = zip(*rows, strict=True)
    return math.fsum(sums), math.fsum(squares), max(largest), sum(zeros), sum(bad)


def _fold(rows: list[Row], count: int) -> Values:
    if not rows:
        return Values(count, 0.0, 0.0, 0.0, 0, 0)
    total, squares, largest, zeros, bad = _add(rows)
    finite = max(count - int(bad), 1)
    return Values(count, total / finite, math.sqrt(squares / finite), largest, int(zeros), int(bad))
