"""Reinforced Agent Merging: average what several models changed, keep whole what only one changed."""

from collections.abc import Sequence
from typing import Any

from fluxsmith.methods.base import Delta, Measured, NonNegative, Weight, merge_method
from fluxsmith.methods.statistics import sums
from fluxsmith.methods.trimming import deltas

__all__ = ["ram", "ram_plus"]

_PAPER = "Yuan et al. 2026, Behavior knowledge merge in reinforced agentic models (arXiv 2601.13572)"


def _changed(base: Weight, models: Sequence[Weight], epsilon: float) -> tuple[list[Delta], Delta]:
    """Every delta without what is no change (at most epsilon), and by how many models each element is changed."""
    import torch

    kept = [torch.nn.functional.hardshrink(delta, epsilon) for delta in deltas(base, *models)]
    count = torch.ne(kept[0], 0, out=torch.empty_like(base))
    for delta in kept[1:]:
        count.add_(torch.ne(delta, 0, out=torch.empty_like(base)))
    return kept, count


@merge_method(paper=_PAPER)
def ram(base: Weight, *models: Weight, epsilon: NonNegative = 1e-5, scale: float = 1.0) -> Weight:
    """base + scale * the mean, per element, of the deltas that change it by more than epsilon."""
    kept, count = _changed(base, models, epsilon)
    total = kept[0]
    for delta in kept[1:]:
        total.add_(delta)
    return base.add(total.div_(count.clamp_(min=1.0)), alpha=scale)


def _counts(base: Weight, *models: Weight, epsilon: float) -> list[Any]:
    """Per model the elements that others change, too; then per model those that it alone changes."""
    kept, count = _changed(base, models, epsilon)
    alone = count == 1
    changed = [delta != 0 for delta in kept]
    return [(one & ~alone).count_nonzero() for one in changed] + [(one & alone).count_nonzero() for one in changed]


@merge_method(statistics={"counts": sums(_counts)}, paper=_PAPER)
def ram_plus(
    base: Weight, *models: Weight, counts: Measured, r: float = 0.1, alpha: float = 0.2, epsilon: NonNegative = 1e-5, scale: float = 1.0
) -> Weight:
    """As ram, with what model i alone changes multiplied by 1 + r clamp(shared_i / unique_i, 0, alpha).

    shared_i and unique_i count its changed elements that others change, too, and that no other changes, per tensor.
    """
    kept, count = _changed(base, models, epsilon)
    unique = count.sub(1).sign_().abs_().neg_().add_(1)  # 1 where one model changes the element, else 0
    extra = None
    for i, delta in enumerate(kept):
        ratio = min(counts[i] / counts[len(kept) + i], alpha) if counts[len(kept) + i] else 0.0
        extra = delta * (r * ratio) if extra is None else extra.add_(delta, alpha=r * ratio)
    total = kept[0]
    for delta in kept[1:]:
        total.add_(delta)
    assert extra is not None
    return base.add(total.add_(extra.mul_(unique)).div_(count.clamp_(min=1.0)), alpha=scale)
