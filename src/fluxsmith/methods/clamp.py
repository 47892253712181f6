"""Keep a result between other checkpoints."""

from fluxsmith.methods.base import Same, Share, merge_method

__all__ = ["clamp"]


@merge_method(paper="sd-mecha")
def clamp(a: Same, *bounds: Same, stiffness: Share = 0.0) -> Same:
    """a, but not above the largest nor below the smallest of the bounds, element by element.

    `stiffness` moves both limits towards the mean of the bounds: at 1 the upper one is the smallest bound that is not
    below the mean, the lower one the largest that is not above it.
    """
    import torch

    low, high = bounds[0], bounds[0]
    for bound in bounds[1:]:
        low, high = torch.minimum(low, bound), torch.maximum(high, bound)
    if stiffness:
        mean = torch.stack(bounds).mean(0)
        inner_high, inner_low, far = high, low, torch.finfo(a.dtype).max / 2
        for bound in bounds:
            # Bounds on the other side of the mean are moved out of the way; what is not moved stays exact.
            below, above = (f(bound, mean, out=torch.empty_like(bound)).mul_(far) for f in (torch.lt, torch.gt))
            inner_high = torch.minimum(inner_high, below.add_(bound))
            inner_low = torch.maximum(inner_low, bound - above)
        high, low = high.lerp(inner_high, stiffness), low.lerp(inner_low, stiffness)
    return torch.minimum(torch.maximum(a, low), high)
