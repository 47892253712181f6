"""Any linear combination: what formulas such as `a + (b - c) * 0.3` become."""

from fluxsmith.methods.base import PerInput, Weight, merge_method

__all__ = ["combination"]


@merge_method(propagates=True, skips_zero=True)
def combination(*terms: Weight, weights: PerInput = ()) -> Weight:
    """sum_i w_i t_i, with the weights as they are: a weight where they sum to one, a delta where to zero."""
    total = terms[0] * weights[0]
    for term, weight in zip(terms[1:], weights[1:], strict=True):
        total = total.add_(term, alpha=weight)
    return total
