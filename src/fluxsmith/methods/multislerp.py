"""Multi-SLERP: average the directions of many models in the plane that touches the sphere at their mean."""

import math
from collections.abc import Sequence

from fluxsmith.methods.base import Measured, PerInput, Same, merge_method
from fluxsmith.methods.linear import shares
from fluxsmith.methods.span import Gram, combined, normalised, product, themselves, unit_gram
from fluxsmith.methods.statistics import gram

__all__ = ["multislerp", "multislerp_coefficients"]

_ZERO = 1e-8


def multislerp_coefficients(products: Gram, weights: Sequence[float]) -> list[float]:
    """The coefficients of the tensors; the weights themselves where directions cancel and there is no mean."""
    norms, cosines = unit_gram(products)
    mean = [weight * bool(norm) for weight, norm in zip(weights, norms, strict=True)]
    if math.sqrt(max(product(cosines, mean, mean), 0.0)) < _ZERO:
        return list(weights)
    mean = normalised(cosines, mean)
    tangent = [0.0] * len(mean)
    for i, weight in enumerate(weights):
        cosine = product(cosines, mean, [float(j == i) for j in range(len(mean))])
        for j, m in enumerate(mean):
            tangent[j] += weight * (float(j == i) - cosine * m)
    length = math.sqrt(max(product(cosines, tangent, tangent), 0.0))
    along = math.sin(length) / length if length > _ZERO else 1.0
    scale = sum(weight * norm for weight, norm in zip(weights, norms, strict=True))
    result = [scale * (math.cos(length) * m + along * t) for m, t in zip(mean, tangent, strict=True)]
    return [c / norm if norm else 0.0 for c, norm in zip(result, norms, strict=True)]


@merge_method(
    statistics={"products": gram(themselves)},
    propagates=True,
    paper="Goddard 2024, Multi-SLERP (goddard.blog/posts/multislerp-wow-what-a-cool-idea)",
)
def multislerp(*models: Same, products: Measured, weights: PerInput = (), normalize: bool = True) -> Same:
    """exp_m(sum_i w_i P_m(u_i)) times sum_i w_i |m_i|, with u_i the directions of whole tensors.

    m is the direction of sum_i w_i u_i, P_m the projection to the plane that touches the sphere there, exp_m the way
    back. Directions that cancel are averaged linearly. Around a base: `base + multislerp(a - base, b - base)`.
    """
    return combined(models, multislerp_coefficients(products, shares(weights, normalize)))
