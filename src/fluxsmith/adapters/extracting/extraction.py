"""A delta as a module of an adapter: low-rank factors, a Kronecker product, or the difference itself, and what is lost by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod, sqrt
from typing import TYPE_CHECKING, Literal

from fluxsmith.adapters.extracting.factorise import LowRank, frobenius_squared, low_rank
from fluxsmith.adapters.extracting.findings import Finding
from fluxsmith.adapters.extracting.kronecker import nearest_kronecker
from fluxsmith.adapters.extracting.rank import RankRule, fits_dense
from fluxsmith.adapters.tensors import ModuleTensors

if TYPE_CHECKING:
    from torch import Tensor

    from fluxsmith.adapters.module import Target

__all__ = ["Options", "extract_module"]

#: The part of ||D|| that float32 arithmetic leaves of an exact factorisation.
ROUNDING = 2e-6


@dataclass(frozen=True)
class Options:
    """How deltas become modules.

    `rule` chooses ranks of a lora, `factor` the size of w1 of a lokr (None: the best). `full_residual` keeps as
    differences all matrices that the algorithm does not hold to rounding; `legacy_clamp` cuts factors at a quantile as
    kohya's script does (see clamped). `dense` says whether matrices may become differences, `vectors` whether those of
    vectors have a place at all. `key` keys the random numbers of the search.
    """

    algorithm: Literal["lora", "lokr", "full"] = "lora"
    rule: RankRule = field(default_factory=RankRule)
    factor: int | None = None
    full_residual: bool = False
    legacy_clamp: float | None = None
    dense: bool = True
    vectors: bool = True
    key: str = ""


def extract_module(
    target: Target, delta: Tensor, options: Options, *, block: str | None = None, noise: float | None = None
) -> tuple[ModuleTensors, Finding] | None:
    """The module that holds a delta of its target's shape (fp32), None where nothing differs.

    Vectors, and matrices whose factors would take as many numbers where that is allowed, are kept as differences.
    """
    energy = frobenius_squared(delta)
    if energy == 0:
        return None
    found = None
    if len(target.shape) > 1 and options.algorithm != "full":
        matrix = delta.reshape(target.shape[0], -1)
        make = _lora if options.algorithm == "lora" else _lokr
        found = make(target, matrix, options)
    if found is not None and options.full_residual and found[1] > ROUNDING**2 * energy:
        found = None
    plain = Finding(target.tensor, target.stored, block, "diff", None, energy, 0.0, noise)
    if found is None:
        return ModuleTensors(target, "diff", {"diff": delta.reshape(target.shape).clone()}, {"scale": 1.0}), plain
    module, residual, singular = found
    above = _above_noise(singular, target.shape, noise)
    return module, replace(plain, algorithm=module.algorithm, rank=len(singular) or None, residual=residual, above=above)


def _above_noise(singular: Sequence[float], shape: tuple[int, ...], noise: float | None) -> int | None:
    """Singular values above the largest one of a matrix of independent noise of that energy: sigma (sqrt(m) + sqrt(n))."""
    if noise is None or not singular:
        return None
    rows, columns = shape[0], prod(shape[1:])
    limit = sqrt(noise / (rows * columns)) * (sqrt(rows) + sqrt(columns))
    return sum(value > limit for value in singular)


Found = tuple[ModuleTensors, float, Sequence[float]]


def _lora(target: Target, matrix: Tensor, options: Options) -> Found | None:
    """LoRA factors, or None where the difference itself is as small."""
    found = low_rank(matrix, options.rule, key=f"{options.key}|{target.stored}")
    if options.dense and fits_dense(found.rank, *matrix.shape):
        return None
    up, down, residual = found.up, found.down, found.residual
    if options.legacy_clamp is not None:
        up, down = clamped(found, options.legacy_clamp)
        residual = frobenius_squared(matrix - up @ down)
    kernel = target.shape[2:]
    factors = {
        "up": up.reshape(*up.shape, *(1 for _ in kernel)).contiguous(),
        "down": down.reshape(found.rank, *target.shape[1:]).contiguous(),
    }
    settings = {"alpha": float(found.rank), "scale": 1.0}
    return ModuleTensors(target, "lora", factors, settings), residual, found.singular


def _lokr(target: Target, matrix: Tensor, options: Options) -> Found | None:
    kernel = target.shape[2:]
    found = nearest_kronecker(matrix, factor=options.factor, kernel=prod(kernel))
    if options.dense and found.w1.numel() + found.w2.numel() >= matrix.numel():
        return None
    w2 = found.w2.reshape(len(found.w2), -1, *kernel) if kernel else found.w2
    factors = {"w1": found.w1.contiguous(), "w2": w2.contiguous()}
    return ModuleTensors(target, "lokr", factors, {"scale": 1.0}), found.residual, ()


def clamped(found: LowRank, quantile: float) -> tuple[Tensor, Tensor]:
    """Factors as kohya's extraction cuts them: U S and V^T, both limited to a quantile of all their (signed) values.

    It costs a large part of the delta (18 % of an exactly low-rank one at 0.99) and is here to make old files again.
    """
    import torch

    root = torch.tensor(found.singular, dtype=torch.float64).sqrt().to(found.up)
    up, down = found.up * root, found.down / root.clamp_min(1e-30)[:, None]
    values = torch.cat([up.flatten(), down.flatten()]).sort().values
    place = quantile * (len(values) - 1)
    low, share = int(place), place - int(place)
    limit = float(torch.lerp(values[low], values[min(low + 1, len(values) - 1)], share))
    return up.clamp(-limit, limit), down.clamp(-limit, limit)
