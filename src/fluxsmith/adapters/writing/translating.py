"""One algorithm's factors in the form that another vocabulary has for them.

DoRA by rows   LyCORIS dora_scale [out, 1, ...]   PEFT magnitude [out], of convolutions [1, out, 1, ...]
(IA)^3         LyCORIS w [n] and on_input         PEFT l = 1 + w, [1, in] or [out, 1]
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fluxsmith.adapters.dialects import Dialect
from fluxsmith.adapters.writing.spelling import words_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fluxsmith.adapters.module import Module
    from fluxsmith.adapters.tensors import ModuleTensors

__all__ = ["decomposes", "translated"]


def decomposes(module: Module | ModuleTensors) -> bool:
    """Whether it is a DoRA: has a magnitude beside its factors."""
    return not {"magnitude", "dora_scale"}.isdisjoint(module.factors)


def translated(module: ModuleTensors, dialect: Dialect) -> ModuleTensors | None:
    """The module with factors that a dialect has words for; None where it cannot say the same."""
    words = words_of(dialect, module.algorithm, bias=module.target.stored.endswith(".bias"))
    if "dora_scale" in module.factors and "dora_scale" not in words and "magnitude" in words:
        module = _as_magnitude(module)
    elif "magnitude" in module.factors and "magnitude" not in words and "dora_scale" in words:
        module = _as_dora_scale(module)
    elif module.algorithm == "ia3" and "w" in words and "l" in module.factors:
        module = _as_change(module)
    if module.algorithm == "replace" and not module.target.tensor.endswith(".scale"):
        return None  # BFL's control adapters replace norms only
    return module if words and words.keys() >= module.factors.keys() else None


def _as_magnitude(module: ModuleTensors) -> ModuleTensors:
    scale = module.factors["dora_scale"]
    if scale.dim() > 1 and scale.shape[0] == 1:  # of columns: PEFT has none
        return module
    kernel = module.target.shape[2:]
    shape = (1, -1, *(1 for _ in kernel)) if kernel else (-1,)
    return _with(module, "dora_scale", {"magnitude": scale.reshape(shape)})


def _as_dora_scale(module: ModuleTensors) -> ModuleTensors:
    shape = (-1, *(1 for _ in module.target.shape[1:]))
    return _with(module, "magnitude", {"dora_scale": module.factors["magnitude"].reshape(shape)})


def _as_change(module: ModuleTensors) -> ModuleTensors:
    factor = module.factors["l"]
    columns = module.settings.get("on_input", float(factor.dim() == 2 and factor.shape[0] == 1))
    found = _with(module, "l", {"w": factor.float().flatten() - 1})
    return replace(found, settings={**module.settings, "on_input": columns})


def _with(module: ModuleTensors, old: str, new: Mapping[str, Tensor]) -> ModuleTensors:
    return replace(module, factors={**{role: f for role, f in module.factors.items() if role != old}, **new})
