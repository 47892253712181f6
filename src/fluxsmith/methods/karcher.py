"""The Karcher mean: the point of the sphere from which the directions of all models are nearest."""

import math
from collections.abc import Sequence
from typing import Annotated

from fluxsmith.methods.base import Between, Measured, NonNegative, PerInput, Same, merge_method
from fluxsmith.methods.linear import shares
from fluxsmith.methods.span import Gram, combined, normalised, product, themselves, unit_gram
from fluxsmith.methods.statistics import gram

__all__ = ["karcher", "karcher_coefficients"]


def karcher_coefficients(products: Gram, weights: Sequence[float], iterations: int, tolerance: float) -> list[float]:
    """The coefficients of the tensors in their Karcher mean, found by steps along the sphere (its gradient descent)."""
    norms, cosines = unit_gram(products)
    known = [i for i, norm in enumerate(norms) if norm]
    if not known:
        return list(weights)
    total = sum(weights[i] for i in known)
    shares_known = {i: weights[i] / total for i in known}
    mean = normalised(cosines, [shares_known.get(i, 0.0) for i in range(len(norms))])
    if product(cosines, mean, mean) < 0.5:  # directions that cancel have no mean to begin from
        mean = [float(i == known[0]) for i in range(len(norms))]
    for _ in range(iterations):
        step = _tangent(cosines, mean, shares_known)
        length = math.sqrt(max(product(cosines, step, step), 0.0))
        if length < tolerance:
            break
        mean = normalised(cosines, [math.cos(length) * m + math.sin(length) / length * s for m, s in zip(mean, step, strict=True)])
    scale = sum(weight * norm for weight, norm in zip(weights, norms, strict=True))
    return [scale * m / norm if norm else 0.0 for m, norm in zip(mean, norms, strict=True)]


def _tangent(cosines: Gram, mean: Sequence[float], weights: dict[int, float]) -> list[float]:
    """The weighted mean of the logarithms of the directions at `mean`."""
    step = [0.0] * len(mean)
    for i, weight in weights.items():
        direction = [float(j == i) for j in range(len(mean))]
        cosine = min(max(product(cosines, mean, direction), -1.0), 1.0)
        angle = math.acos(cosine)
        stretch = weight * (angle / math.sin(angle) if math.sin(angle) > 1e-12 else 1.0)
        for j, m in enumerate(mean):
            step[j] += stretch * (direction[j] - cosine * m)
    return step


@merge_method(
    statistics={"products": gram(themselves)},
    propagates=True,
    paper="Karcher 1977, Riemannian center of mass; Buss and Fillmore 2001, Spherical averages",
)
def karcher(
    *models: Same,
    products: Measured,
    weights: PerInput = (),
    iterations: Annotated[int, Between(0, 10000)] = 100,
    tolerance: NonNegative = 1e-10,
) -> Same:
    """argmin_x sum_i w_i angle(x, m_i)^2 on the sphere, times sum_i w_i |m_i|; w is divided by its sum.

    Of whole tensors. Two models give the slerp between them. Zero tensors have no direction and only shorten the mean.
    """
    return combined(models, karcher_coefficients(products, shares(weights, normalize=True), iterations, tolerance))
