"""How a merge method is called with a base and its fine-tunes: as its signature says, or as CALLS says for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluxsmith.errors import RecipeError
from fluxsmith.methods import Method
from fluxsmith.recipes.expressions import Expression, model

__all__ = ["CALLS", "SKIPPED", "Family", "call_of", "express", "pocket_family", "why_not"]


@dataclass(frozen=True)
class Family:
    """A base and what was trained from it, as nodes of a recipe."""

    base: Expression
    tuned: Sequence[Expression]


Call = Callable[[Method, Family, Mapping[str, Any]], Expression]
"""Makes the node of a method from a family and the method's options.

A method that needs more than weights (importances, statistics of activations) has its own: it makes them from the family,
by forward passes where it must, and gives them to the method as `state_dict(tensors, name=..., holds="param")`.
"""


def pocket_family(base: str, tuned: Sequence[str]) -> Family:
    """The pocket checkpoints of these names."""
    return Family(model(f"pocket/{base}", name=base), [model(f"pocket/{name}", name=name) for name in tuned])


def express(method: Method, family: Family, options: Mapping[str, Any]) -> Expression:
    """The weight that `method` makes of all fine-tunes of a family.

    A number for an option that wants one per input is given to all of them. Raises RecipeError where the method cannot
    be called so.
    """
    reason = why_not(method)
    if reason is not None:
        raise RecipeError("bench.method-does-not-apply", f"{method.name} {reason}")
    given = {name: _spread(method, name, value, len(family.tuned)) for name, value in options.items()}
    return call_of(method)(method, family, given)


def call_of(method: Method) -> Call:
    """The function that calls a method."""
    return CALLS.get(method.name, _by_signature)


def why_not(method: Method) -> str | None:
    """Why a method cannot merge a base and any number of fine-tunes; None where it can."""
    if method.name in CALLS:
        return None
    if method.name in SKIPPED:
        return SKIPPED[method.name]
    fixed = [i for i in method.inputs if not i.variadic]
    if len(fixed) == len(method.inputs):
        return f"takes {_number(len(fixed))}, not any number of models"
    if method.inputs[-1].space == "param" or method.returns == "param":
        return "works on numbers that are no weights"
    if any(i.name != "base" or i.space not in ("weight", "same") for i in fixed):
        return f"wants `{next(i.name for i in fixed if i.name != 'base' or i.space not in ('weight', 'same'))}` beside a base"
    required = [option.name for option in method.options.values() if option.required]
    return f"has no default for `{required[0]}`" if required else None


def _by_signature(method: Method, family: Family, options: Mapping[str, Any]) -> Expression:
    """`method(base, *models)`, `method(*models)`, or the same over deltas and added to the base."""
    fixed = [family.base for i in method.inputs if not i.variadic]
    over_deltas = method.inputs[-1].space == "delta"
    inputs = [node - family.base for node in family.tuned] if over_deltas else family.tuned
    result: Expression = method(*fixed, *inputs, **options)
    return family.base + result if result.space == "delta" else result


def _one_after_another(method: Method, family: Family, options: Mapping[str, Any]) -> Expression:
    """A method of two models, for many: the k-th joins the result so far with share 1 / k, so that all count alike."""
    result = family.tuned[0]
    for count, node in enumerate(family.tuned[1:], start=2):
        result = method(result, node, **{"alpha": 1 / count, **options})
    return result


def _sum_of_deltas(method: Method, family: Family, options: Mapping[str, Any]) -> Expression:
    """A method of one delta, given the sum of all; `scale` (1) is the factor of its result."""
    own = {name: value for name, value in options.items() if name != "scale"}
    total = family.tuned[0] - family.base
    for node in family.tuned[1:]:
        total = total + (node - family.base)
    return family.base + method(total, **own) * options.get("scale", 1.0)


CALLS: dict[str, Call] = {"slerp": _one_after_another, "subspace_boost": _sum_of_deltas}
"""Methods that are not called as their signature says."""

SKIPPED = {
    "combination": "is what formulas are made of; `linear` and `task_arithmetic` stand for it",
    "bake_guidance": "changes the guidance layers of one model",
}


def _spread(method: Method, name: str, value: Any, count: int) -> Any:
    option = method.options.get(name)
    return [value] * count if option is not None and option.per_input and not isinstance(value, (list, tuple)) else value


def _number(count: int) -> str:
    return {1: "one model", 2: "two models", 3: "three models"}.get(count, f"{count} tensors")
