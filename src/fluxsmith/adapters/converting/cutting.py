"""Rows of a module as a module of their own, without touching what it means: a fused tensor's part, or halves that change
places (docs/adapters.md, what conversion does).

    dW[rows] of LoRA    up[rows] @ down
    dW[rows] of LoHa    (w1_a[rows] @ w1_b) * (w2_a[rows] @ w2_b)
    dW[rows] of LoKr    kron(w1[rows of blocks], w2)        where the rows are whole blocks of w2's height
    diff, bias, DoRA by rows, (IA)^3 of outputs: the rows of every factor
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fluxsmith.adapters.tensors import ModuleTensors

if TYPE_CHECKING:
    from torch import Tensor

    from fluxsmith.adapters.module import Target

__all__ = ["cut"]

Range = tuple[int, int]


def cut(module: ModuleTensors, ranges: Sequence[Range], target: Target) -> ModuleTensors | None:
    """The rows of `ranges`, one after another, as a module of `target`; None where its factors cannot be cut there.

    The factors' values are not touched: a LoRA's parts share its `down`.
    """
    if list(ranges) == [(0, _rows(module))]:
        return replace(module, target=target)
    if module.rules.reads(module.shapes) == "whole":
        return None
    factors = _cut_lokr(module, ranges) if module.algorithm == "lokr" else _by_rows(module, ranges)
    return None if factors is None else replace(module, target=target, factors=factors)


def _rows(module: ModuleTensors) -> int:
    return module.target.shape[0] if module.target.shape else 1


def _by_rows(module: ModuleTensors, ranges: Sequence[Range]) -> dict[str, Tensor] | None:
    roles = module.rules.by_rows(module.shapes, module.settings)
    if roles is None:
        return None
    return {role: _pick(factor, ranges) if role in roles else factor for role, factor in module.factors.items()}


def _cut_lokr(module: ModuleTensors, ranges: Sequence[Range]) -> dict[str, Tensor] | None:
    """Row i of kron(w1, w2) comes from row i // height of w1, where w2 has `height` rows."""
    factors: Mapping[str, Tensor] = module.factors
    role = "w1" if "w1" in factors else "w1_a"
    height = _rows(module) // factors[role].shape[0]
    if any(edge % height for a_range in ranges for edge in a_range):
        return None
    return {**factors, role: _pick(factors[role], [(start // height, stop // height) for start, stop in ranges])}


def _pick(factor: Tensor, ranges: Sequence[Range]) -> Tensor:
    import torch

    parts = [factor[start:stop] for start, stop in ranges]
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
