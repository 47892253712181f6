"""Spherical interpolation of two weights, their norms interpolated linearly."""

import math

from fluxsmith.methods.base import Measured, Weight, merge_method
from fluxsmith.methods.statistics import sums

__all__ = ["slerp"]

# Fine-tunes of one base lie within a degree of each other, and the arc still matters there: a straight line is up to
# w^2/8 shorter. Below 1 - cos = 1e-9 that is less than float32 holds. Near opposite directions no arc is the shortest.
_STRAIGHT, _OPPOSITE = 1 - 1e-9, -0.9995


def _products(a: Weight, b: Weight, **_: object) -> tuple[Weight, Weight, Weight]:
    a, b = a.double(), b.double()
    return a.dot(a), b.dot(b), a.dot(b)


@merge_method(statistics={"products": sums(_products)}, propagates=True, paper="Shoemake 1985, Animating rotation with quaternion curves")
def slerp(a: Weight, b: Weight, *, products: Measured, alpha: float = 0.5) -> Weight:
    """Walk from `a` (alpha 0) to `b` (alpha 1) along the arc between their directions.

    With w the angle between whole tensors a and b:
    (sin((1-alpha) w) a/|a| + sin(alpha w) b/|b|) / sin(w), times (1-alpha)|a| + alpha|b|.
    Weights of one direction (to float32), within 2 degrees of opposite ones, and zero tensors are interpolated linearly.
    """
    aa, bb, ab = products
    norm_a, norm_b = math.sqrt(aa), math.sqrt(bb)
    cosine = ab / (norm_a * norm_b) if norm_a and norm_b else 1.0
    if cosine > _STRAIGHT or cosine < _OPPOSITE:
        return a.lerp(b, alpha)
    angle = math.acos(cosine)
    length = ((1 - alpha) * norm_a + alpha * norm_b) / math.sin(angle)
    left = math.sin((1 - alpha) * angle) / norm_a * length
    right = math.sin(alpha * angle) / norm_b * length
    return (a * left).add_(b, alpha=right)
