"""Another rank for what an adapter holds. Of a LoRA without making its delta:

    up = Qa Ra,  down^T = Qb Rb        s up @ down = Qa (s Ra Rb^T) Qb^T
    s Ra Rb^T = U S V^T  [r, r]        the nearest of rank k: (Qa U_k sqrt(S_k)) @ (sqrt(S_k) V_k^T Qb^T)

in float64, which takes O((out + in) r^2). Other algorithms are made dense first and factorised.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fluxsmith.adapters.converting.materialising import weight_read
from fluxsmith.adapters.extracting.extraction import Options, extract_module
from fluxsmith.adapters.extracting.factorise import frobenius_squared
from fluxsmith.adapters.extracting.findings import Finding
from fluxsmith.adapters.extracting.rank import RankRule
from fluxsmith.adapters.tensors import ModuleTensors, delta_of

if TYPE_CHECKING:
    from torch import Tensor

    from fluxsmith.layouts import Bound

__all__ = ["cancels", "is_product", "module_delta", "product_svd", "resized"]

_NOISE = 1e-12  # of the largest singular value: what float64 leaves of one that is zero


def is_product(module: ModuleTensors) -> bool:
    """Whether the delta is scale * up @ down and nothing else."""
    return module.algorithm == "lora" and set(module.factors) == {"up", "down"}


def product_svd(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U [out, k], S [k] descending and V^T [k, in] of up [out, r] @ down [r, in], all float64; k counts what is not zero."""
    import torch

    qa, ra = torch.linalg.qr(up.double())
    qb, rb = torch.linalg.qr(down.double().mT)
    u, s, vh = torch.linalg.svd(ra @ rb.mT)
    size = float(ra.norm() * rb.norm())  # what cancels out leaves rounding errors of this
    rank = int((s > _NOISE * size).sum())
    return qa @ u[:, :rank], s[:rank], vh[:rank] @ qb.mT


def cancels(module: ModuleTensors) -> bool:
    """Whether the delta of a product is zero but for rounding: an adapter and its opposite."""
    return not len(product_svd(module.factors["up"].flatten(1), module.factors["down"].flatten(1))[1])


def resized(
    module: ModuleTensors, rule: RankRule, *, base: Bound | None = None, block: str | None = None
) -> tuple[ModuleTensors, Finding] | None:
    """A module as a LoRA of the rank that a rule chooses (never more than it has), its scale folded in, alpha = rank.

    Vectors and differences of norms stay as they are. None where the delta is zero. Factors keep their type.
    Raises IncompatibleError where the delta depends on weights and there is no base.
    """
    if len(module.target.shape) < 2:
        delta = module_delta(module, base)
        if module.rules.reads(module.shapes) != "nothing":
            return extract_module(module.target, delta, Options("full"), block=block)
        energy = frobenius_squared(delta)
        return (module, Finding(module.target.tensor, module.target.stored, block, module.algorithm, None, energy, 0.0)) if energy else None
    if not is_product(module):
        delta = module_delta(module, base)
        return extract_module(module.target, delta, Options("lora", rule), block=block)
    u, s, vh = product_svd(module.factors["up"].flatten(1), module.factors["down"].flatten(1))
    s = s * abs(module.settings["scale"])
    if not len(s):
        return None
    energy = float(s.square().sum())
    rank = rule.choose(s.tolist(), len(s), energy)
    assert rank is not None  # the spectrum is known
    sign = -1.0 if module.settings["scale"] < 0 else 1.0
    root = s[:rank].sqrt()
    type_ = module.factors["up"].dtype
    factors = {
        "up": (u[:, :rank] * root * sign).reshape(-1, rank, *module.factors["up"].shape[2:]).to(type_).contiguous(),
        "down": (root[:, None] * vh[:rank]).reshape(rank, *module.factors["down"].shape[1:]).to(type_).contiguous(),
    }
    settings = {**module.settings, "alpha": float(rank), "scale": 1.0}
    finding = Finding(module.target.tensor, module.target.stored, block, "lora", rank, energy, float(s[rank:].square().sum()))
    return replace(module, factors=factors, settings=settings), finding


def module_delta(module: ModuleTensors, base: Bound | None) -> Tensor:
    """The delta of a module, fp32; raises IncompatibleError where it needs a base and there is none."""
    return delta_of(module, weight_read(module, base))
