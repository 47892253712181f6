"""Rotations from generators: the Cayley transforms of OFT and BOFT (Qiu et al. 2023, arXiv:2306.07280; Liu et al. 2024,
arXiv:2311.06243; the series is that of OFTv2, Qiu et al. 2025, arXiv:2506.19847).

Q is skew-symmetric, so both of (I + Q)(I - Q)^-1 and (I - Q)(I + Q)^-1 are rotations, the one the inverse of the other.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["block_width", "cayley", "constrained", "neumann", "project", "skew_of_packed"]


def cayley(generator: Tensor) -> Tensor:
    """(I + Q)(I - Q)^-1 for generators [..., b, b]."""
    import torch

    eye = torch.eye(generator.shape[-1], device=generator.device)
    return torch.linalg.solve(eye - generator, eye + generator, left=False)


def neumann(generator: Tensor, terms: int) -> Tensor:
    """The series of (I + Q)(I - Q)^-1, as PEFT cuts it off: I + 2Q + 2Q^2 + ... + 2Q^(n-2) + Q^(n-1) for n = `terms` of at
    least 4. One term is I, two are I + 2Q, three are the same as four."""
    import torch

    found = torch.eye(generator.shape[-1], device=generator.device).expand_as(generator).clone()
    if terms > 1:
        found.add_(generator, alpha=2)
    if terms > 2:
        power = generator
        for _ in range(max(terms - 3, 1)):
            power = power @ generator
            found.add_(power, alpha=2)
        found.add_(power @ generator)
    return found


def constrained(generator: Tensor, limit: float) -> Tensor:
    """Generators whose common norm is at most `limit`; 0 is no limit."""
    norm = float(generator.norm()) + 1e-8 if limit > 0 else 0.0
    return generator * (limit / norm) if norm > limit else generator


def project(generator: Tensor, eps: float) -> Tensor:
    """Generators [n, b, b] whose norms are at most eps / sqrt(n) each (constrained OFT); 0 is no limit."""
    if eps <= 0:
        return generator
    limit = eps / sqrt(len(generator))
    return generator * (limit / generator.flatten(1).norm(dim=1).clamp_min(limit))[:, None, None]


def block_width(count: int) -> int:
    """b of b (b - 1) / 2 packed elements. Raises ValueError where there is no such b."""
    width = (1 + round(sqrt(1 + 8 * count))) // 2
    if count < 1 or width * (width - 1) // 2 != count:
        raise ValueError(f"{count} elements are no upper triangle of a square")
    return width


def skew_of_packed(packed: Tensor) -> Tensor:
    """Skew-symmetric [n, b, b] from the elements above the diagonal, row by row, [n, b (b - 1) / 2]."""
    import torch

    width = block_width(packed.shape[1])
    row, column = torch.triu_indices(width, width, 1, device=packed.device)
    upper = packed.new_zeros(packed.shape[0], width, width)
    upper[:, row, column] = packed
    return upper - upper.transpose(1, 2)
