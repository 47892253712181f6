"""Calls of methods, checked: how many inputs of which space, which options with which values.

Importing this file is what makes `fs.ties(a, b)` a node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from fluxsmith.errors import RecipeError, did_you_mean
from fluxsmith.methods.base import build_nodes_with
from fluxsmith.recipes.expressions import Call, Expression, Literal, as_expression, inputs_of, is_adapters, label
from fluxsmith.recipes.schedules import Number, Ramp, Schedule

if TYPE_CHECKING:
    from fluxsmith.methods import Method
    from fluxsmith.methods.base import Option

__all__ = ["call", "check_option"]


def call(method: Method, inputs: Sequence[Expression | str], options: Mapping[str, Any]) -> Call:
    """A checked call: number and spaces of inputs, names and types of options.

    Raises RecipeError naming the method and what it takes.
    """
    nodes = tuple(as_expression(node) for node in inputs)
    _check_arity(method, nodes)
    nodes = _lifted(method, nodes)
    _check_spaces(method, nodes)
    variadic = len(nodes) - len(method.inputs) + 1
    return Call(method, nodes, {key: check_option(method, key, value, variadic) for key, value in options.items()})


def _lifted(method: Method, nodes: tuple[Expression, ...]) -> tuple[Expression, ...]:
    """An adapter where a method with a base takes a model stands for the base with that adapter."""
    wanted = inputs_of(method, len(nodes))
    if method.inputs[0].name != "base":
        return nodes
    return tuple(
        nodes[0] + node if i and takes.space == "weight" and node.space == "delta" and is_adapters(node) else node
        for i, (node, takes) in enumerate(zip(nodes, wanted, strict=True))
    )


def _check_spaces(method: Method, nodes: Sequence[Expression]) -> None:
    same: str | None = None
    for node, wanted in zip(nodes, inputs_of(method, len(nodes)), strict=True):
        space = (same or node.space) if wanted.space == "same" else wanted.space
        same = space if wanted.space == "same" else same
        if node.space != space:
            raise RecipeError(
                "recipe.wrong-space",
                f"{method.name} takes a {space} where {label(node)} is a {node.space}",
                fix=_mend(node, space),
            )


def _mend(node: Expression, wanted: str) -> str:
    """What to write where a node of another space is wanted."""
    name = label(node)
    if wanted == "param":
        return "give it a number, a mask, or a file of such numbers (`holds: param`)"
    if node.space == "param":
        return f"give it a {'checkpoint' if wanted == 'weight' else 'difference of checkpoints'}"
    return f"give it `{name} - base`" if wanted == "delta" else f"give it `base + {name}`"


def _check_arity(method: Method, nodes: Sequence[Expression]) -> None:
    names = ", ".join(("*" if i.variadic else "") + i.name for i in method.inputs)
    least, variadic = len(method.inputs), method.inputs[-1].variadic
    if len(nodes) < least or (len(nodes) > least and not variadic):
        raise RecipeError(
            "recipe.wrong-arity",
            f"{method.name} takes {'at least ' if variadic else ''}{least} inputs ({names}), {len(nodes)} are given",
        )


def check_option(method: Method, key: str, value: Any, variadic: int) -> Any:
    """The value of an option in the form the engine uses; raises RecipeError where it cannot be one."""
    option = method.options.get(key)
    if option is None:
        raise RecipeError(
            "recipe.unknown-option",
            f"{method.name} has no option `{key}`",
            facts={"options": ", ".join(method.options) or "none"},
            hint=did_you_mean(key, list(method.options)),
        )
    what = "tensors" if option.kind == "tensor" else "numbers"
    if option.per_input and not (option.spreads and not isinstance(value, (list, tuple))):
        if not isinstance(value, (list, tuple)):
            raise RecipeError("recipe.bad-value", f"`{key}` of {method.name} is a list of {what}, one per input, not `{value}`")
        values = tuple(cast("Sequence[Any]", value))
        if len(values) != variadic:
            raise RecipeError(
                "recipe.wrong-length",
                f"{method.name} needs {variadic} {what} for `{key}`, {len(values)} are given",
            )
        return tuple(_check_one(method, option, v) for v in values)
    return _check_one(method, option, value)


def _check_one(method: Method, option: Option, value: Any) -> Any:
    """One value of an option."""
    key = option.name
    if isinstance(value, Expression):
        return _check_tensor(method, option, value)
    if option.kind == "tensor":
        raise RecipeError("recipe.bad-value", f"`{key}` of {method.name} takes tensors in param space, not `{value}`")
    if option.kind == "word":
        if value not in option.words:
            raise RecipeError(
                "recipe.bad-value",
                f"`{key}` of {method.name} is one of {', '.join(option.words)}, not `{value}`",
                hint=did_you_mean(str(value), option.words),
            )
        return value
    if option.kind == "bool":
        if not isinstance(value, bool):
            raise RecipeError("recipe.bad-value", f"`{key}` of {method.name} is true or false, not `{value}`")
        return value
    return _check_number(method, option, value)


def _check_tensor(method: Method, option: Option, node: Expression) -> Any:
    if isinstance(node, Literal) and option.kind == "float":
        return _check_number(method, option, node.value)
    if not option.tensor:
        raise RecipeError("recipe.bad-value", f"`{option.name}` of {method.name} is a number, not a tensor such as {label(node)}")
    if node.space != "param":
        raise RecipeError(
            "recipe.wrong-space",
            f"`{option.name}` of {method.name} takes a param where {label(node)} is a {node.space}",
            fix=_mend(node, "param"),
        )
    return node


def _check_number(method: Method, option: Option, value: Any) -> Number:
    key, between = option.name, option.between
    for number in _numbers(value):
        if not isinstance(number, (int, float)) or isinstance(number, bool) or not abs(number) < float("inf"):
            raise RecipeError("recipe.bad-value", f"`{key}` of {method.name} must be a finite number, not `{number}`")
        if between and not between.low <= number <= between.high:
            raise RecipeError("recipe.bad-value", f"`{key}` of {method.name} lies {between}, not at {number}")
        if option.kind == "int" and number != int(number):
            raise RecipeError("recipe.bad-value", f"`{key}` of {method.name} is a whole number, not `{number}`")
    return value if isinstance(value, (Ramp, Schedule)) else int(value) if option.kind == "int" else float(value)


def _numbers(value: Any) -> list[Any]:
    if isinstance(value, Ramp):
        return list(value.points)
    if isinstance(value, Schedule):
        parts = [n for _, n in value.entries] + ([] if value.default is None else [value.default])
        return [number for part in parts for number in _numbers(part)]
    return [value]


build_nodes_with(call)
