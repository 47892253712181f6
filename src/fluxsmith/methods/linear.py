"""Weighted average of any number of checkpoints."""

from collections.abc import Sequence

from fluxsmith.methods.base import PerInput, Weight, merge_method

__all__ = ["linear", "shares"]


def shares(weights: Sequence[float], normalize: bool) -> list[float]:
    """The factor of every input: the weights, divided by their sum where they are to be normalised."""
    total = sum(weights) if normalize else 1.0
    return [weight / total for weight in weights]


@merge_method(propagates=True, skips_zero=True, paper="Wortsman et al. 2022, Model soups (arXiv 2203.05482)")
def linear(*models: Weight, weights: PerInput = (), normalize: bool = True) -> Weight:
    """sum_i w_i m_i, with w divided by sum(w) unless `normalize` is off.

    Inputs are added in their order, each with one fused multiply-add, in the compute dtype.
    """
    factors = shares(weights, normalize)
    total = models[0] * factors[0]
    for model, factor in zip(models[1:], factors[1:], strict=True):
        total = total.add_(model, alpha=factor)
    return total
