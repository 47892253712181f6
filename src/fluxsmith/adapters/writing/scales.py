"""Where a module's scale goes when it is written, so that whoever reads the file multiplies by exactly that.

The dialect's own reading decides: a number is written only where `Dialect.settings` gives the scale back from it; in
every other case the scale is multiplied into a factor, in fp32 where the factor's type cannot hold the product.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from fluxsmith.adapters.dialects import Dialect, Draft

if TYPE_CHECKING:
    from torch import Tensor

    from fluxsmith.adapters.tensors import ModuleTensors, Outline

__all__ = ["alpha_of", "fold_scale", "numbered", "scaled_exactly", "with_scale"]

#: Which factors take the scale, per algorithm: one of every term of the sum that the delta is.
_LINEAR = {
    "lora": (("up",), ("sparse_values",)), "loha": (("w1_a",),), "lokr": (("w1", "w1_a"),), "diff": (("diff",),),
    "glora": (("a1",), ("b1",)),
}  # fmt: skip

_CLOSE = 1e-7


def numbered(module: ModuleTensors, dialect: Dialect, name: str) -> tuple[ModuleTensors, dict[str, float]]:
    """The module as it is written, and its numbers by the last part of their keys."""
    writing = dialect.writing
    assert writing is not None
    alpha = alpha_of(module)
    if module.target.stored.endswith(".bias") and module.algorithm == "lora":
        return module, {}  # it has the scale of its weight
    if writing.scale == "alpha":
        numbers = _numbers(module, alpha)
        if _reads_back(module, dialect, name, numbers):
            return module, numbers
        folded = fold_scale(module)
        numbers = _numbers(folded, alpha_of(folded))
        return folded, numbers
    if writing.scale == "nowhere":
        return fold_scale(module), {}
    return module, {}


def alpha_of(module: ModuleTensors | Outline) -> float | None:
    """The alpha that means the module's scale; None where its algorithm has no rank to divide it by."""
    rank = module.rules.rank(module.shapes)
    if rank is None:
        return None
    stored, scale = module.settings.get("alpha"), module.settings.get("scale", 1.0)
    if stored and math.isclose(module.rules.scale(stored, rank, module.shapes), scale, rel_tol=_CLOSE):
        return stored
    return scale * rank


def _numbers(module: ModuleTensors, alpha: float | None) -> dict[str, float]:
    found = {last: module.settings[setting] for last, setting in module.rules.numbers.items() if setting in module.settings}
    if module.algorithm == "lokr" and alpha is None:  # of whole matrices it means nothing, but LyCORIS wants to read a number
        return {**found, "alpha": 1.0}
    return found if alpha is None else {**found, "alpha": alpha}


def _reads_back(module: ModuleTensors, dialect: Dialect, name: str, numbers: Mapping[str, float]) -> bool:
    """Whether a reader of the dialect finds the scale again in what is to be written."""
    stored = {module.rules.numbers[last]: _single(value) for last, value in numbers.items()}
    found = dialect.settings(Draft(name, module.algorithm, module.shapes, stored), {})
    return math.isclose(found.get("scale", 1.0), module.settings.get("scale", 1.0), rel_tol=_CLOSE)


def _single(value: float) -> float:
    """The value after it was stored in four bytes."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def fold_scale(module: ModuleTensors) -> ModuleTensors:
    """The same delta with scale 1: the scale is in a factor."""
    settings = {name: value for name, value in module.settings.items() if name != "alpha"}
    return with_scale(replace(module, settings=settings), 1.0)


def with_scale(module: ModuleTensors, scale: float) -> ModuleTensors:
    """The same delta with another scale: the rest is in a factor."""
    ratio = module.settings.get("scale", 1.0) / scale
    if ratio == 1:
        return module
    taking = [next((role for role in term if role in module.factors), None) for term in _LINEAR[module.algorithm]]
    scaled = {role: scaled_exactly(module.factors[role], ratio) for role in taking if role is not None}
    return replace(module, factors={**module.factors, **scaled}, settings={**module.settings, "scale": scale})


def scaled_exactly(tensor: Tensor, scale: float) -> Tensor:
    """The product in the tensor's own type where that holds it exactly (powers of two), else in fp32."""
    product = tensor.float() * scale
    rounded = product.to(tensor.dtype)
    return rounded if bool((rounded.float() == product).all()) else product
