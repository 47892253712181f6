"""Linear interpolation of two checkpoints."""

import math
from typing import Literal

from fluxsmith.errors import RecipeError
from fluxsmith.methods.base import Param, Weight, merge_method

__all__ = ["weighted_sum"]


@merge_method(propagates=True, paper="Wortsman et al. 2022, Model soups (arXiv 2203.05482)")
def weighted_sum(
    a: Weight, b: Weight, *, alpha: float | Param = 0.5, curve: Literal["linear", "sigmoid", "inverse_sigmoid"] = "linear"
) -> Weight:
    """(1 - alpha) a + alpha b; alpha may be a tensor of numbers.

    `curve` bends alpha first, as diffusers' checkpoint merger does: sigmoid to alpha^2 (3 - 2 alpha), inverse_sigmoid to
    1/2 - sin(asin(1 - 2 alpha) / 3), which undoes it.
    """
    if curve != "linear" and isinstance(alpha, (int, float)) and not 0 <= alpha <= 1:
        raise RecipeError("recipe.bad-value", f"`alpha` of weighted_sum with a curve lies between 0 and 1, not at {alpha:g}")
    if curve == "sigmoid":
        alpha = alpha * alpha * (3 - 2 * alpha)
    elif curve == "inverse_sigmoid":
        alpha = (
            0.5 - math.sin(math.asin(1 - 2 * alpha) / 3) if isinstance(alpha, (int, float)) else 0.5 - ((1 - 2 * alpha).asin() / 3).sin()
        )
    return a.lerp(b, alpha)
