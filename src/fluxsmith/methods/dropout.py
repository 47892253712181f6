"""Dropout of deltas with a say in how the kept elements of several models overlap (n-supermario)."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from fluxsmith.methods.base import Delta, Masks, Share, Weight, merge_method
from fluxsmith.methods.trimming import deltas

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["dropout", "set_sizes"]


def set_sizes(models: int, density: float, overlap: float, emphasis: float) -> list[float]:
    """With what probability an element is kept by a certain set of k models, for k = 0 ... models.

    An element is kept by none with probability 1 - density. Else each set of k models has a weight exp(k tan(pi (overlap
    - 1/2))): with overlap 0 only single models, with 1/2 all sets alike, with 1 only all models. `emphasis` mixes in
    the sets of independent draws, most at overlap 1/2 and not at all at 0 and 1.
    """
    sizes = range(1, models + 1)
    if overlap in (0.0, 1.0):
        chosen = 1 if overlap == 0 else models
        weights = [float(k == chosen) for k in sizes]
    else:
        lean = math.tan(math.pi * (overlap - 0.5))
        highest = max(lean, lean * models)
        weights = [math.exp(lean * k - highest) for k in sizes]
    share = emphasis * (1 - abs(2 * overlap - 1))
    parts = [_per_set(models, weights), _per_set(models, [density**k * (1 - density) ** (models - k) for k in sizes])]
    return [1 - density, *(density * ((1 - share) * one + share * other) for one, other in zip(*parts, strict=True))]


def _per_set(models: int, weights: Sequence[float]) -> list[float]:
    """Weights of one set of each size, divided so that all sets together have probability one."""
    total = sum(weight * math.comb(models, k) for k, weight in enumerate(weights, start=1))
    return [weight / total if total else 0.0 for weight in weights]


def _next_probability(sizes: Sequence[float], drawn: int, kept: int) -> float:
    """With what probability the next model keeps an element that `kept` of the `drawn` models before it keep."""
    models = len(sizes) - 1

    def mass(drawn: int, kept: int) -> float:
        return sum(sizes[k] * math.comb(models - drawn, k - kept) for k in range(kept, models + 1))

    total = mass(drawn, kept)
    return min(mass(drawn + 1, kept + 1) / total, 1.0) if total > 0 else 0.0


def _drawn_sets(found: Sequence[Delta], masks: Masks, sizes: Sequence[float]) -> "list[Tensor]":
    """One mask per delta: sets of the wanted sizes, drawn model by model, as all sets of one size are alike."""
    import torch

    count = torch.zeros_like(found[0], dtype=torch.int64)
    drawn: list[Tensor] = []
    for i, delta in enumerate(found):
        table = torch.tensor([_next_probability(sizes, i, kept) for kept in range(i + 1)], device=delta.device)
        drawn.append(masks.keep(i, table[count], delta))
        count += drawn[-1]
    return drawn


@merge_method(paper="martyn 2023, n-supermario; Yu et al. 2023 (arXiv 2311.03099)")
def dropout(
    base: Weight,
    *models: Weight,
    masks: Masks,
    density: Share = 0.1,
    draw: Literal["independent", "sets"] = "independent",
    overlap: Share = 1.0,
    overlap_emphasis: Share = 0.0,
    rescale: Literal["density", "none"] = "density",
    scale: float = 0.5,
) -> Weight:
    """base + scale * the mean, per element, of the deltas that keep it, divided by `density`.

    `draw: independent` keeps each element of each delta with probability `density`; with `sets` an element is kept by a
    random set of models with that probability, whose size `overlap` rules: 0 one model, 1 all, between them any.
    """
    found = deltas(base, *models)
    if density <= 0:
        return base.clone()
    if draw == "independent":
        drawn = [masks.keep(i, density, delta) for i, delta in enumerate(found)]
    else:
        drawn = _drawn_sets(found, masks, set_sizes(len(found), density, overlap, overlap_emphasis))
    total, count = found[0] * drawn[0], drawn[0].to(base.dtype)
    for delta, mask in zip(found[1:], drawn[1:], strict=True):
        total.add_(delta.mul_(mask))
        count.add_(mask)
    factor = scale / density if rescale == "density" and density < 1 else scale
    return base.add(total.div_(count.clamp_(min=1.0)), alpha=factor)
