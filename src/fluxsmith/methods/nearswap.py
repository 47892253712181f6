"""NearSwap: take over small differences, and no more than a step of large ones."""

from fluxsmith.methods.base import NonNegative, Weight, merge_method

__all__ = ["nearswap"]


@merge_method(propagates=True, paper="alchemonaut 2024, QuartetAnemoi (huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001)")
def nearswap(base: Weight, model: Weight, *, t: NonNegative = 1e-4) -> Weight:
    """(1 - w) base + w model with w = min(1, t / |model - base|), which is base + clamp(model - base, -t, t)."""
    return (model - base).clamp_(-t, t).add_(base)
