"""Deltas of algorithms as the engine asks for them: whole, and on any rows."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from fluxsmith.adapters.algorithms import Algorithm, Rows

__all__ = ["TOLERANCE", "delta", "fits", "on_rows", "rand", "relative", "shapes_of"]

TOLERANCE = 1e-6


def shapes_of(factors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {role: tuple(factor.shape) for role, factor in factors.items()}


def delta(algorithm: Algorithm, factors: Mapping[str, Tensor], settings: Mapping[str, float], weight: Tensor) -> Tensor:
    """The delta of all rows; that of some rows is the same on each of several cuts."""
    whole = on_rows(algorithm, factors, settings, weight, 0, len(weight))
    out = len(weight)
    cuts = [sorted({0, *edges, out}) for edges in ((1,), (out // 2,), (out // 3, out // 3 + 2, out - 1), range(out))]
    for cut in cuts:
        parts = [on_rows(algorithm, factors, settings, weight, start, stop) for start, stop in pairwise(cut)]
        assert relative(torch.cat(parts), whole) <= TOLERANCE, cut
    assert whole.dtype == torch.float32
    return whole


def on_rows(
    algorithm: Algorithm, factors: Mapping[str, Tensor], settings: Mapping[str, float], weight: Tensor, start: int, stop: int
) -> Tensor:
    """As the engine does it: only the rows of factors that are asked for, only what is read of the weight."""
    shapes, rows = shapes_of(factors), Rows(start, stop, tuple(weight.shape))
    ranges = algorithm.ranges(shapes, settings, rows)
    read = {role: (factor[slice(*ranges[role])] if role in ranges else factor).float() for role, factor in factors.items()}
    base = {"nothing": None, "rows": weight[start:stop].float(), "whole": weight.float()}[algorithm.reads(shapes)]
    before = None if base is None else base.clone()
    kept = {role: factor.clone() for role, factor in read.items()}
    made = algorithm.delta(read, settings, rows, base)
    assert tuple(made.shape) == (stop - start, *weight.shape[1:])
    assert before is None or (base is not None and base.equal(before))
    assert all(read[role].equal(factor) for role, factor in kept.items())
    return made


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def fits(shape: tuple[int | None, ...], weight: Tensor) -> bool:
    """A shape is that of the weight, or of the weight as a matrix."""
    wanted = tuple(weight.shape) if len(shape) == weight.dim() else (len(weight), weight[0].numel())
    return len(shape) == len(wanted) and all(a is None or a == b for a, b in zip(shape, wanted, strict=True))


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)
