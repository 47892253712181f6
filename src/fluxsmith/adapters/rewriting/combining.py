"""Several adapters as one: sum_i w_i dW_i, exactly, module by module.

    LoRA   down = [down_1; down_2; ...],  up = [s_1 w_1 up_1, s_2 w_2 up_2, ...],  rank = sum r_i, alpha = rank

The scales and signs stand on one side only. (Averages of ups and of downs are no sum of deltas.) Differences and biases are
added; a tensor that one adapter alone changes keeps its algorithm; other deltas are made dense first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import TYPE_CHECKING

from fluxsmith.adapters.converting.conversion import Conversion
from fluxsmith.adapters.dialects import Dialect
from fluxsmith.adapters.extracting.extraction import Options, extract_module
from fluxsmith.adapters.extracting.findings import Finding
from fluxsmith.adapters.extracting.rank import RankRule
from fluxsmith.adapters.module import Adapter
from fluxsmith.adapters.rewriting.resizing import cancels, is_product, module_delta, resized
from fluxsmith.adapters.tensors import ModuleTensors, read_module
from fluxsmith.adapters.writing.scales import scaled_exactly
from fluxsmith.errors import IncompatibleError, UsageError
from fluxsmith.layouts import Bound

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Combination", "Term", "check_contributions", "untrained"]

Term = tuple[float, ModuleTensors]


@dataclass
class Combination:
    """The sum of adapters, each times its weight, in the places that a dialect has.

    `rule` makes every matrix a LoRA of the rank that it chooses; without one the sum is exact. `base` is the model that
    the adapters are for, where deltas depend on its weights. Iterating gives one module after another, with what was
    lost; what adds up to zero is left out. Raises IncompatibleError for adapters of several families.
    """

    adapters: Sequence[Adapter]
    weights: Sequence[float]
    dialect: Dialect
    base: Bound | None = None
    rule: RankRule | None = None
    notes: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.adapters) or not all(isfinite(weight) for weight in self.weights):
            raise UsageError("usage.weights", "one finite weight is needed for each adapter", fix="-w 0.8 -w 0.5")
        first = self.adapters[0]
        for other in self.adapters[1:]:
            if other.family != first.family:
                raise IncompatibleError(
                    "adapter.mixed-families",
                    f"{first.checkpoint.reference} is for {first.family}, {other.checkpoint.reference} for {other.family}",
                    fix="merge adapters of one family",
                )
        check_contributions(self.adapters, self.weights)
        self._conversions = [Conversion(adapter, self.dialect, self.base, notes=self.notes) for adapter in self.adapters]

    def __iter__(self) -> Iterator[tuple[ModuleTensors, Finding]]:
        tensors = {name: tensor for conversion in self._conversions for name, tensor in conversion.changed.items()}
        for name, tensor in tensors.items():
            places: dict[str, list[Term]] = {}
            for weight, conversion in zip(self.weights, self._conversions, strict=True):
                for module in conversion.exact(name):
                    places.setdefault(f"{module.target.stored} {module.target.parts}", []).append((weight, module))
            for terms in places.values():
                found = self._sum(terms, tensor.block)
                if found is not None:
                    yield found

    def _sum(self, terms: Sequence[Term], block: str | None) -> tuple[ModuleTensors, Finding] | None:
        _check_shapes(terms)
        target = terms[0][1].target
        module = _exact(terms)
        if module is None:
            delta = sum(
                (weight * module_delta(part, self.base) for weight, part in terms[1:]), terms[0][0] * module_delta(terms[0][1], self.base)
            )
            options = Options("lora", self.rule) if self.rule else Options("full")
            return extract_module(target, delta, options, block=block)
        if self.rule is not None:
            return resized(module, self.rule, base=self.base, block=block)
        if is_product(module) and len(terms) > 1 and cancels(module):
            return None
        rank = module.rules.rank(module.shapes)
        return module, Finding(target.tensor, target.stored, block, module.algorithm, rank, 0.0, 0.0)


def check_contributions(adapters: Sequence[Adapter], weights: Sequence[float]) -> None:
    """Raise IncompatibleError where an adapter adds nothing: its weight is zero, or its factors are.

    Of each the modules are read up to the first that changes something.
    """
    for adapter, weight in zip(adapters, weights, strict=True):
        file = adapter.checkpoint.reference
        if not weight:
            fix = "leave it out, or give it another weight"
            raise IncompatibleError("recipe.no-contribution", f"{file} contributes nothing: its weight is 0", fix=fix)
        if not any(_changes(read_module(module)) for module in adapter.modules):
            raise untrained(file)


def untrained(file: str) -> IncompatibleError:
    """An adapter whose delta is zero everywhere."""
    return IncompatibleError(
        "adapter.changes-nothing", f"{file} changes nothing: its delta is zero in every tensor",
        facts={"file": file}, fix="leave it out; an adapter that was not trained has such factors",
    )  # fmt: skip


def _changes(module: ModuleTensors) -> bool:
    """Whether a delta can be other than zero, as its factors tell: a product is zero where one of them is."""
    if module.rules.reads(module.shapes) != "nothing":
        return True
    product = module.algorithm in ("lora", "loha", "lokr")
    return (all if product else any)(bool(factor.any()) for factor in module.factors.values())


def _check_shapes(terms: Sequence[Term]) -> None:
    one = terms[0][1].target
    for _, module in terms[1:]:
        if module.target.shape != one.shape:
            raise IncompatibleError(
                "adapter.wrong-width",
                f"two adapters have different shapes at `{one.stored}`",
                facts={"one": list(one.shape), "other": list(module.target.shape)},
                fix="merge adapters of one model",
            )


def _exact(terms: Sequence[Term]) -> ModuleTensors | None:
    """The sum as one module of the same algorithm; None where only its dense delta is one."""
    if len(terms) == 1:
        return _times(*terms[0])
    modules = [module for _, module in terms]
    if all(is_product(module) for module in modules):
        return _concatenated(terms)
    if all(len(module.target.shape) < 2 and len(module.factors) == 1 for module in modules):
        return _added(terms)
    return None


def _times(weight: float, module: ModuleTensors) -> ModuleTensors | None:
    """A module times a weight, where its delta is linear in its scale."""
    if weight == 1:
        return module
    if module.rules.reads(module.shapes) != "nothing" or "scale" not in module.settings:
        return None
    settings = {name: value for name, value in module.settings.items() if name != "alpha"}
    return replace(module, settings={**settings, "scale": weight * module.settings["scale"]})


def _concatenated(terms: Sequence[Term]) -> ModuleTensors:
    import torch

    ups: list[Tensor] = []
    for weight, module in terms:
        scale = weight * module.settings["scale"]
        ups.append(scaled_exactly(module.factors["up"], scale))
    downs = [module.factors["down"] for _, module in terms]
    kind = _widest([*ups, *downs])
    factors = {"up": torch.cat([up.to(kind) for up in ups], dim=1), "down": torch.cat([down.to(kind) for down in downs])}
    rank = float(factors["down"].shape[0])
    return replace(terms[0][1], factors=factors, settings={"alpha": rank, "scale": 1.0})


def _added(terms: Sequence[Term]) -> ModuleTensors | None:
    """Vectors: one factor each, in the role that the first one has."""
    (role,) = terms[0][1].factors
    if any(set(module.factors) != {role} or module.rules.reads(module.shapes) != "nothing" for _, module in terms):
        return None
    total = sum(weight * module.settings.get("scale", 1.0) * module.factors[role].float() for weight, module in terms)
    return replace(terms[0][1], factors={role: total}, settings={"scale": 1.0})  # pyright: ignore[reportArgumentType]


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    """The one type of all of them, else float32 (float64 where one is that)."""
    import torch

    kinds = {tensor.dtype for tensor in tensors}
    return kinds.pop() if len(kinds) == 1 else torch.float64 if torch.float64 in kinds else torch.float32
