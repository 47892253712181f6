"""Averages over the checkpoints of a run, after the fact."""

import math
from typing import Annotated, Literal

from fluxsmith.methods.base import Between, Share, Weight, merge_method
from fluxsmith.methods.span import combined

__all__ = ["WIDEST", "ema", "exponential_coefficients", "power_coefficients", "power_exponent"]

#: The relative width of the uniform average, the widest profile that does not favour early checkpoints: 1 / sqrt(12).
WIDEST = 12**-0.5


def exponential_coefficients(count: int, alpha: float) -> list[float]:
    """The share of every checkpoint in e_1 = m_1, e_k = (1 - alpha) e_(k-1) + alpha m_k."""
    return [(1 - alpha) ** (count - 1), *(alpha * (1 - alpha) ** (count - k) for k in range(2, count + 1))]


def power_exponent(sigma_rel: float) -> float:
    """The exponent of the profile t^gamma whose standard deviation is `sigma_rel` of the length of the run.

    sigma_rel = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)) falls as gamma rises, so halving an interval finds it.
    """
    low, high = 0.0, 1.0
    while _width(high) > sigma_rel:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _width(middle) > sigma_rel else (low, middle)
    return (low + high) / 2


def _width(gamma: float) -> float:
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def power_coefficients(count: int, sigma_rel: float) -> list[float]:
    """The share of every checkpoint in e_k = b_k e_(k-1) + (1 - b_k) m_k with b_k = (1 - 1/k)^(gamma + 1)."""
    power = power_exponent(sigma_rel) + 1
    return [(k / count) ** power - ((k - 1) / count) ** power for k in range(1, count + 1)]


@merge_method(propagates=True, paper="Karras et al. 2024, Training dynamics of diffusion models (arXiv 2312.02696)")
def ema(
    *models: Weight,
    profile: Literal["exponential", "power"] = "exponential",
    alpha: Share = 0.9,
    sigma_rel: Annotated[float, Between(0.001, WIDEST)] = 0.1,
) -> Weight:
    """A weighted average of checkpoints in the order of their training, evenly spaced.

    `exponential`: e = lerp(e, m, alpha) over the checkpoints, so alpha is the share of the newest. `power`: Karras' power
    function profile, whose width is the share `sigma_rel` of the run (at most 0.2886, the uniform average).
    """
    count = len(models)
    return combined(models, exponential_coefficients(count, alpha) if profile == "exponential" else power_coefficients(count, sigma_rel))
