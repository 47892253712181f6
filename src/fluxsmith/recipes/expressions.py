"""Expressions: what a recipe computes, as a graph over checkpoints.

    schnell + (krea - dev) * 0.3              arithmetic; any linear combination
    fs.ties(dev, krea, photo, density=0.4)    a call of a method
    base + 0.8 * fs.adapter("style.safetensors")    an adapter is a delta
    a | b                                     a where it has the tensor, else b
    fs.component(a, "vae"), fs.omit(a, "t5")  only these components of a model, or all others
    fs.literal(0.5)                           a number as a tensor of numbers

Every node has a *space*. A linear expression of weights is a *weight* where its coefficients sum to one and a *delta*
where they sum to zero; anything else is an error once it is used. Masks, importances and literals are *param*: numbers
that are no weights. Nodes are compared by identity: a node used twice is computed once per tile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from numbers import Real
from typing import TYPE_CHECKING, Any, cast
from typing import Literal as Word

from fluxsmith.errors import Position, RecipeError
from fluxsmith.methods.base import Input
from fluxsmith.recipes.schedules import Number

if TYPE_CHECKING:
    from torch import Tensor

    from fluxsmith.methods import Method

__all__ = [
    "Adapter", "Call", "Combination", "Component", "Expression", "Fallback", "Literal", "Model", "Nothing", "adapter", "as_expression",
    "children", "component", "fallback", "inputs_of", "is_adapters", "label", "literal", "model", "omit", "state_dict", "walk",
]  # fmt: skip

_CLOSE = 1e-6
Space = Word["weight", "delta", "param"]


class Expression:
    """Base of all nodes; gives the operators."""

    def __add__(self, other: Expression) -> Expression:
        return _combine((self, 1.0), (other, 1.0))

    def __sub__(self, other: Expression) -> Expression:
        return _combine((self, 1.0), (other, -1.0))

    def __mul__(self, factor: float) -> Expression:
        return _combine((self, _number(factor)))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Expression:
        if _number(divisor) == 0:
            raise RecipeError("recipe.bad-formula", "division by zero", fix="divide by another number")
        return _combine((self, 1.0 / _number(divisor)))

    def __neg__(self) -> Expression:
        return _combine((self, -1.0))

    def __or__(self, other: Expression) -> Expression:
        return fallback(self, other)

    @property
    def space(self) -> str:
        """`weight`, `delta` or `param`; raises RecipeError where the expression is none of them."""
        raise NotImplementedError

    def models(self) -> list[Model]:
        """Every model that the expression names, once, in the order of first use."""
        return [node for node in walk(self) if isinstance(node, Model)]

    def adapters(self) -> list[Adapter]:
        """Every adapter that the expression names, once, in the order of first use."""
        return [node for node in walk(self) if isinstance(node, Adapter)]


@dataclass(frozen=True, eq=False)
class Model(Expression):
    """A checkpoint. `components` limits an all-in-one file to the named components; `at` is where it was named.

    `holds` is what its tensors are: weights, deltas, or params (masks, importances). `tensors` is a state dict in
    memory that takes the place of a file.
    """

    reference: str
    name: str
    components: tuple[str, ...] = ()
    at: Position | None = None
    holds: Space = "weight"
    tensors: Mapping[str, Tensor] | None = None

    @property
    def space(self) -> str:
        return self.holds


@dataclass(frozen=True, eq=False)
class Adapter(Expression):
    """A stored delta: LoRA and its kin. `weight` is its strength, one number or one per block, part, ramp.

    `components` limits it to some, `ignore` are globs of keys to leave out, both by rule. `base` is the model whose
    weights it reads where its algorithm does (DoRA, OFT, ...); without one these are the weights that it is added to.
    `alpha` is that of modules for which neither the file nor its sidecar says one.
    """

    reference: str
    name: str
    weight: Number = 1.0
    components: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    base: Expression | None = None
    alpha: float | None = None
    at: Position | None = None

    def __post_init__(self) -> None:
        if isinstance(self.weight, (int, float)) and not isfinite(self.weight):
            raise RecipeError("recipe.bad-value", f"the weight of `{self.name}` is {self.weight}", at=self.at, fix="give a finite number")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise RecipeError("recipe.bad-value", f"the alpha of `{self.name}` is {self.alpha}", at=self.at, fix="give a number above zero")

    @property
    def space(self) -> str:
        return "delta"


@dataclass(frozen=True, eq=False)
class Literal(Expression):
    """A number (or one per block, part, ramp) that stands for a tensor of numbers."""

    value: Number

    @property
    def space(self) -> str:
        return "param"


@dataclass(frozen=True, eq=False)
class Nothing(Expression):
    """No tensor at all: what a recipe makes that only copies."""

    @property
    def space(self) -> str:
        return "weight"


@dataclass(frozen=True, eq=False)
class Fallback(Expression):
    """`first` for the tensors that it has, `second` for the others."""

    first: Expression
    second: Expression

    @property
    def space(self) -> str:
        return self.first.space


@dataclass(frozen=True, eq=False)
class Component(Expression):
    """Only the named components of a model, or with `omitted` all others."""

    node: Expression
    names: tuple[str, ...]
    omitted: bool = False

    @property
    def space(self) -> str:
        return self.node.space


@dataclass(frozen=True, eq=False)
class Call(Expression):
    """A method applied to nodes. Options are numbers, words, one number per variadic input, or nodes in param space
    (for methods that take a tensor there), one or a tuple of them."""

    method: Method
    inputs: tuple[Expression, ...]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def space(self) -> str:
        if self.method.returns != "same":
            return self.method.returns
        return next(node.space for node, i in zip(self.inputs, inputs_of(self.method, len(self.inputs)), strict=True) if i.space == "same")

    @property
    def tensors(self) -> dict[str, Expression | tuple[Expression, ...]]:
        """The options that are nodes."""
        return {key: value for key, value in self.options.items() if _nodes_in(value)}


@dataclass(frozen=True, eq=False)
class Combination(Expression):
    """A sum of nodes with coefficients, no node twice."""

    terms: tuple[tuple[Expression, float], ...]

    @property
    def space(self) -> str:
        spaces = {node.space for node, _ in self.terms}
        if spaces == {"param"}:
            return "param"
        if "param" in spaces:
            raise RecipeError(
                "recipe.wrong-space",
                "numbers that are no weights (param) are added to weights",
                facts={"formula": _formula(self)},
                fix="multiply a delta by them: multiply(delta, mask)",
            )
        total = sum(factor for node, factor in self.terms if node.space == "weight")
        if abs(total - 1) < _CLOSE:
            return "weight"
        if abs(total) < _CLOSE:
            return "delta"
        raise RecipeError(
            "recipe.wrong-space",
            f"the coefficients of a sum of weights add up to {total:g}: neither a weight (1) nor a delta (0)",
            facts={"formula": _formula(self)},
            fix="make them sum to 1, or subtract a base from each model" + self._about_adapters(),
        )

    def _about_adapters(self) -> str:
        names = [node.name for node, _ in self.terms if isinstance(node, Adapter)]
        return f"; the adapter {names[0]} is a delta, which does not count: `base + 0.5*{names[0]}`" if names else ""


def walk(root: Expression) -> list[Expression]:
    """All nodes below a root, inputs before those who use them, each once."""
    order: dict[int, Expression] = {}
    pending: list[tuple[Expression, bool]] = [(root, False)]
    while pending:  # no recursion: recipes made by programs may be nested deeper than Python's stack
        node, seen = pending.pop()
        if id(node) in order:
            continue
        if seen:
            order[id(node)] = node
            continue
        pending.append((node, True))
        pending += [(child, False) for child in reversed(children(node))]
    return list(order.values())


def children(node: Expression) -> Sequence[Expression]:
    """The nodes that a node uses directly."""
    if isinstance(node, Call):
        return [*node.inputs, *(n for value in node.options.values() for n in _nodes_in(value))]
    if isinstance(node, Combination):
        return [term for term, _ in node.terms]
    if isinstance(node, Fallback):
        return [node.first, node.second]
    if isinstance(node, Adapter):
        return [node.base] if node.base is not None else ()
    return [node.node] if isinstance(node, Component) else ()


def is_adapters(node: Expression) -> bool:
    """Whether a delta is made of adapters alone: it is zero for tensors that none of them changes."""
    return node.space == "delta" and all(isinstance(leaf, Adapter) for leaf in _summands(node))


def _summands(node: Expression) -> list[Expression]:
    """What a delta is made of; the base that an adapter reads is no part of it."""
    inner = () if isinstance(node, Adapter) else children(node)
    return [leaf for child in inner for leaf in _summands(child)] if inner else [node]


def inputs_of(method: Method, count: int) -> list[Input]:
    """What a method takes at every place when it is given `count` inputs."""
    inputs = list(method.inputs)
    return inputs + [inputs[-1]] * (count - len(inputs))


def _nodes_in(value: Any) -> list[Expression]:
    """The nodes in the value of an option."""
    if isinstance(value, Expression):
        return [value]
    return [n for n in cast("tuple[Any, ...]", value) if isinstance(n, Expression)] if isinstance(value, tuple) else []


def model(reference: str, *, name: str | None = None, components: Sequence[str] = (), holds: Space = "weight") -> Model:
    """A checkpoint by path, folder or Hub reference (`org/name[@revision][:path]`); nothing is opened yet.

    `holds="delta"` is for files of differences, `"param"` for files of masks or importances.
    """
    return Model(str(reference), name or _name_of(str(reference)), tuple(components), holds=holds)


def state_dict(tensors: Mapping[str, Tensor], *, name: str, holds: Space = "weight") -> Model:
    """A state dict in memory as a model; its tensors are read when the recipe runs and are not copied before."""
    return Model(f"memory:{name}", name, holds=holds, tensors=dict(tensors))


def adapter(
    reference: str,
    *,
    weight: Number = 1.0,
    name: str | None = None,
    components: Sequence[str] = (),
    ignore: Sequence[str] = (),
    base: Expression | None = None,
    alpha: float | None = None,
) -> Adapter:
    """An adapter (LoRA and its kin) by path, PEFT folder or Hub reference, as a delta: `base + 0.8 * fs.adapter("style.safetensors")`.

    `components` (transformer, clip_l, ...) are the parts of it that are used, `ignore` globs of keys to leave out;
    `base` is the model whose weights DoRA, OFT and their kin read, where that is not the one that it is added to; `alpha`
    is for files that have lost theirs.
    """
    return Adapter(str(reference), name or _name_of(str(reference)), weight, tuple(components), tuple(ignore), base, alpha)


def literal(value: Number) -> Literal:
    """A number as a tensor of numbers, for parameters that take one."""
    return Literal(value)


def fallback(first: Expression, second: Expression) -> Fallback:
    """`first | second`: the first where it has a tensor, the second elsewhere; both of one space."""
    if first.space != second.space:
        raise RecipeError(
            "recipe.wrong-space",
            f"{label(first)} is a {first.space}, its fallback {label(second)} a {second.space}",
            fix="both sides of `|` are of one space",
        )
    return Fallback(first, second)


def component(node: Expression | str, *names: str) -> Component:
    """Only these components (`transformer`, `vae`, `clip_l`, ...) of a model."""
    return Component(as_expression(node), names)


def omit(node: Expression | str, *names: str) -> Component:
    """A model without these components."""
    return Component(as_expression(node), names, omitted=True)


def as_expression(value: Expression | str) -> Expression:
    """A node as it is, or a reference as a model."""
    return value if isinstance(value, Expression) else model(value)


def _number(value: object) -> float:
    """A factor; raises RecipeError for anything but a finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not abs(float(value)) < float("inf"):
        what = label(value) if isinstance(value, Expression) else repr(value)
        fix = "models are added; a delta is multiplied by a mask with fs.multiply(delta, mask)"
        fix = fix if isinstance(value, Expression) else "give a finite number"
        raise RecipeError("recipe.bad-formula", f"a model is multiplied by a finite number, not by {what}", fix=fix)
    return float(value)


def _combine(*parts: tuple[Expression, float]) -> Expression:
    """A combination of the parts, combinations among them opened up and equal nodes joined.

    A model with adapters stays closed unless only deltas are added to it: what adapters read of the base's weights are
    those that they were added to.
    """
    terms: dict[int, tuple[Expression, float]] = {}
    for index, (node, factor) in enumerate(parts):
        if not isinstance(node, Expression):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"cannot combine a model with {node!r}")
        others = [other for i, (other, _) in enumerate(parts) if i != index]
        closed = isinstance(node, Combination) and _is_adapted(node) and (factor != 1 or any(_has_weights(other) for other in others))
        inner = node.terms if isinstance(node, Combination) and not closed else ((node, 1.0),)
        for term, coefficient in inner:
            _, before = terms.get(id(term), (term, 0.0))
            terms[id(term)] = (term, before + coefficient * factor)
    return Combination(tuple(terms.values()))


def _is_adapted(node: Combination) -> bool:
    return _has_weights(node) and any(isinstance(term, Adapter) for term, _ in node.terms)


def _has_weights(node: Expression) -> bool:
    """Whether a sum has a term that is a weight (the sum itself may be neither weight nor delta yet)."""
    if isinstance(node, Combination):
        return any(_has_weights(term) for term, _ in node.terms)
    return node.space == "weight"


def label(node: Expression) -> str:
    """What an error calls a node."""
    if isinstance(node, (Model, Adapter)):
        return node.name
    return f"{node.method.name}(...)" if isinstance(node, Call) else "(...)"


def _formula(node: Combination) -> str:
    return " + ".join(f"{factor:g}*{label(term)}" for term, factor in node.terms)


def _name_of(reference: str) -> str:
    """A short name for a reference: its last part without suffix, as a word."""
    last = reference.rstrip("/").split(":")[-1].split("@")[0].rstrip("/").split("/")
    stem = last[-1] if last[-1] not in ("transformer",) or len(last) == 1 else last[-2]
    stem = stem.removesuffix(".safetensors")
    return "".join(c if c.isalnum() else "_" for c in stem).strip("_") or "model"
