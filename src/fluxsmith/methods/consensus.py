"""Consensus merging: of the summed deltas only what matters to several of the models (TALL masks)."""

from typing import Annotated

from fluxsmith.methods.base import Between, NonNegative, Weight, merge_method
from fluxsmith.methods.trimming import deltas

__all__ = ["consensus"]


@merge_method(paper="Wang et al. 2024, Localizing task information for improved model merging and compression (arXiv 2405.07813)")
def consensus(
    base: Weight, *models: Weight, strictness: NonNegative = 0.4, agreeing: Annotated[int, Between(0, 1000)] = 2, scale: float = 1.0
) -> Weight:
    """base + scale * m * sum_i d_i, where m keeps an element if at least `agreeing` models have it in their mask.

    The mask of model i has the elements with |d_i| > strictness * |sum_j d_j - d_i|: those where the sum is near to
    what it learned. `agreeing` 1 drops what serves nobody, 2 (the paper) also what serves a single model.
    """
    import torch

    found = deltas(base, *models)
    total = found[0].clone()
    for delta in found[1:]:
        total.add_(delta)
    votes = None
    for delta in found:
        rest = (total - delta).abs_().mul_(strictness)
        mask = torch.gt(delta.abs_(), rest, out=rest)
        votes = mask if votes is None else votes.add_(mask)
    assert votes is not None
    return base.addcmul(total, torch.ge(votes, agreeing, out=votes), value=scale)
