"""How a merge method is called with a base and its fine-tunes: as its signature says, or as CALLS says for it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fluxsmith.errors import RecipeError
from fluxsmith.methods import METHODS, Method
from fluxsmith.methods.base import Option
from fluxsmith.recipes.expressions import Expression
from fluxsmith.recipes.lines import lines
from fluxsmith.reports.methods_bench.family import Call, Family
from fluxsmith.reports.methods_bench.statistics_inputs import with_statistics

__all__ = ["CALLS", "SKIPPED", "call_of", "express", "measured_methods", "why_not"]


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
    if any(i.space == "param" for i in fixed):
        return "wants more than a base and models"
    missing = [option.name for option in method.options.values() if option.required or option.kind == "tensor"]
    return f"needs `{missing[0]}`, which the bench does not know how to make" if missing else None


def _by_signature(method: Method, family: Family, options: Mapping[str, Any]) -> Expression:
    """`method(base, *models)`, `method(*models)`, or the same over deltas and added to the base.

    Parameters between the base and the variadic one (as in `model_stock(base, first, *models)`) are models, too.
    """
    fixed = [family.base for i in method.inputs[:1] if i.name == "base"]
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


def _one_into_another(method: Method, family: Family, options: Mapping[str, Any]) -> Expression:
    """A method of a base and one model, for many: every model is put into the result so far."""
    result = family.base
    for node in family.tuned:
        result = method(result, node, **options)
    return result


def _sum_of_deltas(method: Method, family: Family, options: Mapping[str, Any]) -> Expression:
    """A method of one delta, given the sum of all; `scale` (1) is the factor of its result."""
    own = {name: value for name, value in options.items() if name != "scale"}
    total = family.tuned[0] - family.base
    for node in family.tuned[1:]:
        total = total + (node - family.base)
    return family.base + method(total, **own) * options.get("scale", 1.0)


def _growing(method: Method, family: Family, options: Mapping[str, Any]) -> Expression:
    """LiNeS: task arithmetic whose scale grows from alpha to alpha + beta over the blocks, here from 0.5 to 0.9."""
    return lines(family.base, *family.tuned, alpha=options.get("alpha", 0.5), beta=options.get("beta", 0.4))


CALLS: dict[str, Call] = {
    "lines": _growing,
    "slerp": _one_after_another,
    "nuslerp": _one_after_another,
    "nearswap": _one_into_another,
    "arcee_fusion": _one_into_another,
    "subspace_boost": _sum_of_deltas,
    "fisher": with_statistics("fisher", "importance"),
    "regmean": with_statistics("regmean", "grams"),
}
"""Methods that are not called as their signature says."""

SKIPPED = {
    "combination": "is what formulas are made of; `linear` and `task_arithmetic` stand for it",
    "bake_guidance": "changes the guidance layers of one model",
    "clamp": "bounds one model by others",
    "ema": "averages the checkpoints of one run, which have an order",
}


_LINES = {name: Option(name, "float", inspect.Parameter.empty) for name in ("alpha", "beta")}


def measured_methods() -> dict[str, Method]:
    """All that is measured: the registered methods, and LiNeS, which is a schedule of one of them."""
    return {**METHODS, "lines": replace(METHODS["task_arithmetic"], name="lines", options=_LINES)}


def _spread(method: Method, name: str, value: Any, count: int) -> Any:
    option = method.options.get(name)
    return [value] * count if option is not None and option.per_input and not isinstance(value, (list, tuple)) else value


def _number(count: int) -> str:
    return {1: "one model", 2: "two models", 3: "three models"}.get(count, f"{count} tensors")
