"""Deltas made dense, and dense deltas made LoRA: what is left where factors have no exact form in another place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from typing import TYPE_CHECKING, Literal, Protocol

from fluxsmith.adapters.module import Module, Target
from fluxsmith.adapters.tensors import ModuleTensors, delta_of, read_module, read_values
from fluxsmith.adapters.writing.translating import decomposes
from fluxsmith.errors import IncompatibleError, UsageError
from fluxsmith.io.views import View
from fluxsmith.layouts import Bound

if TYPE_CHECKING:
    from torch import Tensor

    from fluxsmith.adapters.extracting.rank import RankRule

__all__ = ["Rows", "Shape", "as_lora", "base_weight", "dense", "weight_read"]

Shape = Literal["diff", "lora"]


class Rows(Protocol):
    """Some rows of a module, or of none."""

    @property
    def module(self) -> Module | None: ...
    @property
    def start(self) -> int: ...
    @property
    def rows(self) -> int: ...


def dense(target: Target, sources: Sequence[Rows], base: Bound | None) -> ModuleTensors:
    """The delta of a target, fp32, from the rows of its sources; rows without one are zero.

    Raises IncompatibleError where an algorithm needs the base's weight and there is none.
    """
    import torch

    deltas: dict[int, Tensor] = {}
    parts: list[Tensor] = []
    for source in sources:
        if source.module is None:
            parts.append(torch.zeros(source.rows, *target.shape[1:]))
            continue
        if id(source.module) not in deltas:
            module = read_module(source.module)
            deltas[id(source.module)] = delta_of(module, weight_read(module, base))
        part = deltas[id(source.module)][source.start : source.start + source.rows]
        parts.append(part.reshape(source.rows, *target.shape[1:]))
    return ModuleTensors(target, "diff", {"diff": torch.cat(parts)}, {"scale": 1.0})


def weight_read(module: ModuleTensors, base: Bound | None) -> Tensor | None:
    """The base's weight where a module's algorithm reads it, None where it does not.

    Raises IncompatibleError where there is no base.
    """
    if module.rules.reads(module.shapes) == "nothing":
        return None
    if base is None:
        title = "DoRA" if decomposes(module) else module.rules.title
        raise IncompatibleError(
            "adapter.needs-base",
            f"what the adapter holds for `{module.target.stored}` ({title}) depends on the base's weight",
            facts={"tensor": module.target.tensor},
            fix="give the model that it was trained on: --base REF",
        )
    return base_weight(base, module.target)


def base_weight(base: Bound, target: Target) -> Tensor:
    """The base's weight where a target is, as it lay in the layout of the target, fp32."""
    view = base.views[target.tensor]
    rows = View.stack([view.rows(span.start, span.start + span.rows) for span in target.spans]) if view.shape else view
    return read_values(rows).reshape(target.shape)


def as_lora(module: ModuleTensors, rule: RankRule | None) -> tuple[ModuleTensors, str, float]:
    """The nearest LoRA of a dense delta, and what it leaves of its norm; vectors and convolutions' kernels as they are.

    Raises UsageError where no rank was asked for.
    """
    delta = module.factors["diff"]
    if delta.dim() < 2:
        return module, "dense", 0.0
    if rule is None:
        raise UsageError("usage.rank", "--as lora needs --rank R, or --energy SHARE", fix="--as lora --rank 16")
    from fluxsmith.adapters.extracting.factorise import low_rank

    found = low_rank(delta.flatten(1), rule, key=module.target.tensor)
    down = found.down.reshape(found.rank, *delta.shape[1:])
    up = found.up.reshape(*found.up.shape, *(1,) * (delta.dim() - 2))
    lora = replace(module, algorithm="lora", factors={"up": up.contiguous(), "down": down.contiguous()})
    return lora, "low rank", sqrt(max(found.residual, 0.0) / found.energy) if found.energy else 0.0
