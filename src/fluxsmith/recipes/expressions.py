"""Expressions: what a recipe computes, as a graph over checkpoints.

    schnell + (krea - dev) * 0.3          arithmetic; any linear combination
    fs.ties(dev, krea, photo, density=0.4)  a call of a method

A linear expression is a *weight* where its coefficients sum to one and a *delta* where they sum to zero; anything else
is an error once it is used. Nodes are compared by identity: a node used twice is computed once per tile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from fluxsmith.errors import Position, RecipeError, did_you_mean
from fluxsmith.methods.base import build_nodes_with
from fluxsmith.recipes.schedules import Number, Ramp, Schedule

if TYPE_CHECKING:
    from fluxsmith.methods import Method

__all__ = ["Call", "Combination", "Expression", "Model", "as_expression", "call", "model"]

_CLOSE = 1e-6


class Expression:
    """Base of all nodes; gives the operators."""

    def __add__(self, other: Expression) -> Expression:
        return _combine((self, 1.0), (other, 1.0))

    def __sub__(self, other: Expression) -> Expression:
        return _combine((self, 1.0), (other, -1.0))

    def __mul__(self, factor: float) -> Expression:
        return _combine((self, float(factor)))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Expression:
        return _combine((self, 1.0 / float(divisor)))

    def __neg__(self) -> Expression:
        return _combine((self, -1.0))

    @property
    def space(self) -> str:
        """`weight` or `delta`; raises RecipeError where the expression is neither."""
        raise NotImplementedError

    def models(self) -> list[Model]:
        """Every model that the expression names, once, in the order of first use."""
        found: dict[int, Model] = {}
        for node in walk(self):
            if isinstance(node, Model):
                found.setdefault(id(node), node)
        return list(found.values())


@dataclass(frozen=True, eq=False)
class Model(Expression):
    """A checkpoint. `components` limits an all-in-one file to the named components; `at` is where it was named."""

    reference: str
    name: str
    components: tuple[str, ...] = ()
    at: Position | None = None

    @property
    def space(self) -> str:
        return "weight"


@dataclass(frozen=True, eq=False)
class Call(Expression):
    """A method applied to nodes. Options are numbers, words, or one number per variadic input."""

    method: Method
    inputs: tuple[Expression, ...]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def space(self) -> str:
        return self.method.returns


@dataclass(frozen=True, eq=False)
class Combination(Expression):
    """A sum of nodes with coefficients, no node twice."""

    terms: tuple[tuple[Expression, float], ...]

    @property
    def space(self) -> str:
        total = sum(factor for node, factor in self.terms if node.space == "weight")
        if abs(total - 1) < _CLOSE:
            return "weight"
        if abs(total) < _CLOSE:
            return "delta"
        raise RecipeError(
            "recipe.wrong-space",
            f"the coefficients of a sum of weights add up to {total:g}: neither a weight (1) nor a delta (0)",
            facts={"formula": " + ".join(f"{factor:g}*{_label(node)}" for node, factor in self.terms)},
            fix="make them sum to 1, or subtract a base from each model",
        )


def walk(root: Expression) -> list[Expression]:
    """All nodes below a root, inputs before those who use them, each once."""
    order: dict[int, Expression] = {}

    def visit(node: Expression) -> None:
        if id(node) in order:
            return
        for child in children(node):
            visit(child)
        order[id(node)] = node

    visit(root)
    return list(order.values())


def children(node: Expression) -> Sequence[Expression]:
    """The nodes that a node uses directly."""
    if isinstance(node, Call):
        return node.inputs
    if isinstance(node, Combination):
        return [term for term, _ in node.terms]
    return ()


def model(reference: str, *, name: str | None = None, components: Sequence[str] = ()) -> Model:
    """A checkpoint by path, folder or Hub reference (`org/name[@revision][:path]`); nothing is opened yet."""
    return Model(str(reference), name or _name_of(str(reference)), tuple(components))


def as_expression(value: Expression | str) -> Expression:
    """A node as it is, or a reference as a model."""
    return value if isinstance(value, Expression) else model(value)


def call(method: Method, inputs: Sequence[Expression | str], options: Mapping[str, Any]) -> Call:
    """A checked call: number and spaces of inputs, names and types of options.

    Raises RecipeError naming the method and what it takes.
    """
    nodes = tuple(as_expression(node) for node in inputs)
    _check_arity(method, nodes)
    for node, space in zip(nodes, input_spaces(method, len(nodes)), strict=True):
        if node.space != space:
            wanted = f"`{_label(node)} - base`" if space == "delta" else f"`base + {_label(node)}`"
            raise RecipeError(
                "recipe.wrong-space",
                f"{method.name} takes a {space} where {_label(node)} is a {node.space}",
                fix=f"give it {wanted}",
            )
    variadic = len(nodes) - len(method.inputs) + 1
    return Call(method, nodes, {key: check_option(method, key, value, variadic) for key, value in options.items()})


def input_spaces(method: Method, count: int) -> list[str]:
    """The space of every input when there are `count` of them."""
    spaces = [i.space for i in method.inputs]
    return spaces + [spaces[-1]] * (count - len(spaces)) if method.inputs[-1].variadic else list(spaces)


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
    if option.per_input:
        if not isinstance(value, (list, tuple)):
            raise RecipeError("recipe.bad-value", f"`{key}` of {method.name} is a list of numbers, one per input, not `{value}`")
        values = tuple(cast("Sequence[Any]", value))
        if len(values) != variadic:
            raise RecipeError("recipe.wrong-length", f"{method.name} needs {variadic} numbers for `{key}`, {len(values)} are given")
        return tuple(_check_number(method, key, v, "float") for v in values)
    if option.kind == "word":
        if value not in option.words:
            raise RecipeError("recipe.bad-value", f"`{key}` of {method.name} is one of {', '.join(option.words)}, not `{value}`")
        return value
    if option.kind == "bool":
        if not isinstance(value, bool):
            raise RecipeError("recipe.bad-value", f"`{key}` of {method.name} is true or false, not `{value}`")
        return value
    return _check_number(method, key, value, option.kind)


def _check_number(method: Method, key: str, value: Any, kind: str) -> Number:
    for number in _numbers(value):
        if not isinstance(number, (int, float)) or isinstance(number, bool) or not abs(number) < float("inf"):
            raise RecipeError("recipe.bad-value", f"`{key}` of {method.name} must be a finite number, not `{number}`")
        if key == "density" and not 0 <= number <= 1:
            raise RecipeError("recipe.bad-value", f"`density` of {method.name} lies between 0 and 1, not at {number}")
    return value if isinstance(value, (Ramp, Schedule)) else int(value) if kind == "int" else float(value)


def _numbers(value: Any) -> list[Any]:
    if isinstance(value, Ramp):
        return list(value.points)
    if isinstance(value, Schedule):
        parts = [n for _, n in value.entries] + ([] if value.default is None else [value.default])
        return [number for part in parts for number in _numbers(part)]
    return [value]


def _combine(*parts: tuple[Expression, float]) -> Expression:
    """A combination of the parts, combinations among them opened up and equal nodes joined."""
    terms: dict[int, tuple[Expression, float]] = {}
    for node, factor in parts:
        if not isinstance(node, Expression):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"cannot combine a model with {node!r}")
        inner = node.terms if isinstance(node, Combination) else ((node, 1.0),)
        for term, coefficient in inner:
            _, before = terms.get(id(term), (term, 0.0))
            terms[id(term)] = (term, before + coefficient * factor)
    return Combination(tuple(terms.values()))


def _label(node: Expression) -> str:
    if isinstance(node, Model):
        return node.name
    return f"{node.method.name}(...)" if isinstance(node, Call) else "(...)"


def _name_of(reference: str) -> str:
    """A short name for a reference: its last part without suffix, as a word."""
    last = reference.rstrip("/").split(":")[-1].split("@")[0].rstrip("/").split("/")
    stem = last[-1] if last[-1] not in ("transformer",) or len(last) == 1 else last[-2]
    stem = stem.removesuffix(".safetensors")
    return "".join(c if c.isalnum() else "_" for c in stem).strip("_") or "model"


build_nodes_with(call)
