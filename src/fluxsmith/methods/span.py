"""Arithmetic with linear combinations of tensors of which only the scalar products are known.

A combination is its list of coefficients c, a tensor sum_i c_i t_i; with the Gram matrix G its norm is sqrt(c G c).
Means on spheres and medians stay in the span of their inputs, so one measured pass is all that they need.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Gram", "combined", "normalised", "product", "themselves", "unit_gram"]

Gram = Sequence[Sequence[float]]
Coefficients = Sequence[float]


def themselves(*tensors: "Tensor") -> Sequence["Tensor"]:
    """The tensors as they are: whose products a method wants measured."""
    return tensors


def product(gram: Gram, one: Coefficients, other: Coefficients) -> float:
    """The scalar product of two combinations."""
    return math.fsum(a * gram[i][j] * b for i, a in enumerate(one) for j, b in enumerate(other))


def normalised(gram: Gram, one: Coefficients) -> list[float]:
    """The combination with norm one; unchanged where it is zero."""
    length = math.sqrt(max(product(gram, one, one), 0.0))
    return [c / length for c in one] if length else list(one)


def unit_gram(gram: Gram) -> tuple[list[float], list[list[float]]]:
    """Norms of the tensors, and the Gram matrix of their directions (cosines); a zero tensor has the direction zero."""
    norms = [math.sqrt(gram[i][i]) for i in range(len(gram))]
    cosines = [
        [1.0 if i == j and n else gram[i][j] / (n * m) if n and m else 0.0 for j, m in enumerate(norms)] for i, n in enumerate(norms)
    ]
    return norms, cosines


def combined(tensors: Sequence["Tensor"], coefficients: Coefficients) -> "Tensor":
    """sum_i c_i t_i, added in their order."""
    total = tensors[0] * coefficients[0]
    for tensor, coefficient in zip(tensors[1:], coefficients[1:], strict=True):
        total.add_(tensor, alpha=coefficient)
    return total
