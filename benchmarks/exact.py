"""TIES by numpy, to compare with: `python -m benchmarks.exact OUT DENSITY BASE MODEL ...` prints JSON.

Some tensors of OUT, large and small, are computed again from the definition (Yadav et al. 2023): thresholds by a
partition of all magnitudes of a whole tensor, signs by the sum of deltas, the mean of those that agree. A threshold that
is not exact shows as elements that differ.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.compare import bits
from fluxsmith.io.opening import open_checkpoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ties"]

_LARGE = 3  # of the largest tensors, beside one of every other size


def ties(base: "NDArray[Any]", models: "Sequence[NDArray[Any]]", density: float) -> "NDArray[Any]":
    """base + mean over the agreeing models of the largest `density` of each delta, in float32."""
    import numpy as np

    deltas = [model - base for model in models]
    for delta in deltas:
        kept = max(int(density * delta.size), 1)
        threshold = np.partition(np.abs(delta), delta.size - kept)[delta.size - kept]
        delta[np.abs(delta) < threshold] = 0
    plus = sum(deltas[1:], start=deltas[0]) >= 0
    total, agreeing = np.zeros_like(base), np.zeros_like(base)
    for delta in deltas:
        agrees = np.where(plus, delta > 0, delta < 0)
        total += np.where(agrees, delta, 0)
        agreeing += agrees
    return base + total / np.maximum(agreeing, 1)


def _float(patterns: "NDArray[Any]") -> "NDArray[Any]":
    import numpy as np

    return (patterns.astype(np.uint32) << 16).view(np.float32)


def _rounded(values: "NDArray[Any]") -> "NDArray[Any]":
    """bf16 bit patterns of float32 numbers, to nearest, ties to even."""
    import numpy as np

    wide = values.view(np.uint32)
    return ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype(np.uint16)


def _chosen(sizes: dict[str, int]) -> list[str]:
    """The largest tensors, and one of every other size."""
    by_size = sorted(sizes, key=lambda name: (-sizes[name], name))
    chosen = by_size[:_LARGE]
    for name in by_size:
        if sizes[name] not in {sizes[other] for other in chosen}:
            chosen.append(name)
    return chosen


def _main(out: Path, density: float, *paths: Path) -> None:
    found, *inputs = (open_checkpoint(path).tensors for path in (out, *paths))
    names = _chosen({name: view.count for name, view in found.items()})
    elements = wrong = 0
    for name in names:
        base, *models = (_float(bits(i[name], 0, i[name].count)) for i in inputs)
        elements += base.size
        merged = _float(bits(found[name], 0, found[name].count))
        wrong += int((_float(_rounded(ties(base, models, density))) != merged).sum())
    print(json.dumps({"tensors": len(names), "elements": elements, "wrong": wrong}))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), float(sys.argv[2]), *map(Path, sys.argv[3:]))
