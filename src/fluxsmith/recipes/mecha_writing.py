"""Recipes as `.mecha` text, which sd-mecha reads; what its files cannot say is refused by name.

A sum of weights becomes a chain of `add_difference` around its first term, since sd-mecha has no sums with factors.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

from fluxsmith.errors import RecipeError
from fluxsmith.recipes.expressions import Adapter, Call, Combination, Component, Expression, Fallback, Literal, Model, walk
from fluxsmith.recipes.mecha import VERSION
from fluxsmith.recipes.mecha_methods import COMPONENTS
from fluxsmith.recipes.recipe import Recipe

__all__ = ["recipe_to_mecha"]


def recipe_to_mecha(recipe: Recipe) -> str:
    """The recipe as `.mecha` text.

    Raises RecipeError where it has something that a `.mecha` file has no word for.
    """
    _refuse_policies(recipe)
    writer = _Writer()
    for node in walk(recipe.root):  # inputs first, so that no depth of nesting is one of recursion
        writer.write(node)
    if recipe.output.dtype:
        writer.cast(recipe.root, recipe.output.dtype)
    title = [f"# {line}" for line in recipe.title.splitlines()]
    return "\n".join([VERSION, *title, *writer.lines])


def _refuse_policies(recipe: Recipe) -> None:
    said = {
        "rules": recipe.rules, "a guidance policy": recipe.guidance, "a policy for missing tensors": recipe.missing != "error",
        "a layout of the output": recipe.output.layout, "a shard size": recipe.output.shard_size, "a prefix to strip": recipe.strip,
        "a rest that is copied": recipe.rest, "components that are made": recipe.components,
    }  # fmt: skip
    for what, given in said.items():
        if given:
            raise _refusal(f"{what}", "save it as YAML")


def _refusal(what: str, fix: str = "save the recipe as YAML") -> RecipeError:
    return RecipeError("recipe.not-in-mecha", f"a .mecha file has no word for {what}", fix=fix)


class _Writer:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self._places: dict[int, str] = {}

    def write(self, node: Expression) -> None:
        """The line of a node whose inputs are written; its place is known from then on."""
        if isinstance(node, Model):
            place = self._model(node)
        elif isinstance(node, Literal):
            place = self.number(node.value)
        elif isinstance(node, Combination):
            place = self._sum(node)
        elif isinstance(node, Fallback):
            place = self.merge("fallback", self.at(node.first), self.at(node.second))
        elif isinstance(node, Component):
            place = self._component(node)
        elif isinstance(node, Adapter):
            raise _refusal(f"the adapter `{node.name}`")
        else:
            place = self._call(cast("Call", node))
        self._places[id(node)] = place

    def at(self, node: Expression) -> str:
        """Where a node stands."""
        return self._places[id(node)]

    def add(self, line: str) -> str:
        """A line, and where it stands; the same line twice is one."""
        if line not in self.lines:
            self.lines.append(line)
        return f"&{self.lines.index(line)}"

    def merge(self, method: str, *arguments: str) -> str:
        return self.add(" ".join([f'merge "{method}"', *arguments]))

    def number(self, value: Any) -> str:
        """One value for all keys."""
        if not isinstance(value, (int, float, str)):
            raise _refusal("numbers that differ from block to block", "give one number, or save the recipe as YAML")
        word = ("true" if value else "false") if isinstance(value, bool) else _quoted(value) if isinstance(value, str) else repr(value)
        literal = self.add(f'literal {self.add(f"dict key={word}")} model_config="singleton-mecha" merge_space="param"')
        return self.merge("convert_singleton", literal)

    def value(self, value: Any) -> str:
        """An option: a node or a number."""
        return self.at(value) if isinstance(value, Expression) else self.number(value)

    def cast(self, node: Expression, dtype: str) -> None:
        """The result rounded to a type."""
        names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
        if dtype not in names:
            raise _refusal(f"the output type {dtype}", "leave it out, and quantise what sd-mecha wrote: fluxsmith convert --dtype")
        self.merge("cast", self.at(node), f"dtype={self.number(names[dtype])}")

    def _model(self, node: Model) -> str:
        if node.tensors is not None:
            raise _refusal(f"`{node.name}`, a state dict in memory", "save it as a file first")
        if not node.reference.endswith(".safetensors"):
            raise _refusal(
                f"`{node.reference}`: sd-mecha reads single .safetensors files", "name a file: fluxsmith convert -o FILE.safetensors"
            )
        place = self.add(f'model {_quoted(node.reference)} model_config=null merge_space="{node.holds}"')
        for name in node.components[:1]:
            if len(node.components) > 1:
                raise _refusal(f"several components of `{node.name}` at once")
            place = self.merge("pick_component", place, self.number(_component_name(name)))
        return place

    def _sum(self, node: Combination) -> str:
        terms = [(term, factor) for term, factor in node.terms if factor != 0]
        weights = [(term, factor) for term, factor in terms if term.space == "weight"]
        if node.space == "param":
            raise _refusal("a sum of masks")
        if not weights:
            return self.chain(None, [(self.at(term), factor) for term, factor in terms])
        pivot, _ = weights[0] if node.space == "weight" else min(weights, key=lambda pair: pair[1])
        deltas = [(self.merge("subtract", self.at(term), self.at(pivot)), factor) for term, factor in weights if term is not pivot]
        deltas += [(self.at(term), factor) for term, factor in terms if term.space == "delta"]
        return self.chain(self.at(pivot) if node.space == "weight" else None, deltas)

    def chain(self, start: str | None, deltas: Sequence[tuple[str, float]]) -> str:
        """A start, or nothing, plus deltas with factors."""
        place = start
        for delta, factor in deltas:
            if place is None:
                place = delta if factor == 1 else self.merge("scale", delta, self.number(factor))
            else:
                place = self.merge("add_difference", place, delta, self.number(factor))
        if place is None:
            raise _refusal("an empty sum")
        return place

    def _component(self, node: Component) -> str:
        if not node.omitted and len(set(map(_component_name, node.names))) > 1:
            raise _refusal("several components at once", "join them: component(a, ...) | component(a, ...)")
        place = self.at(node.node)
        for name in sorted(set(map(_component_name, node.names))):
            place = self.merge("omit_component" if node.omitted else "pick_component", place, self.number(name))
        return place

    def _call(self, node: Call) -> str:
        if node.method.name not in _WRITERS:
            raise _refusal(f"{node.method.name}, which sd-mecha does not have as it is here")
        options = {name: node.options.get(name, option.default) for name, option in node.method.options.items()}
        return _WRITERS[node.method.name](self, node, options)


def _component_name(name: str) -> str:
    back = {ours: theirs for theirs, ours in COMPONENTS.items()} | {"transformer": "diffuser", "unet": "diffuser"}
    if name not in back:
        raise _refusal(f"the component `{name}`")
    return back[name]


def _quoted(text: str) -> str:
    if "=" in text:
        raise _refusal(f"`{text}`: sd-mecha cuts text at `=`", "rename the file")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


# One writer per method: the line that is it in sd-mecha.

_Write = Callable[[_Writer, Call, dict[str, Any]], str]


def _same(name: str, *options: str) -> _Write:
    """A method that is called and means the same there."""

    def write(writer: _Writer, node: Call, given: dict[str, Any]) -> str:
        return writer.merge(name, *map(writer.at, node.inputs), *(writer.value(given[option]) for option in options))

    return write


def _only(given: dict[str, Any], method: str, **wanted: Any) -> None:
    """Refuses options that the method cannot say in sd-mecha."""
    for name, value in wanted.items():
        if given[name] != value:
            raise _refusal(f"`{name}: {given[name]}` of {method}", f"set it to {value}, or save the recipe as YAML")


def _equal(given: dict[str, Any], name: str, method: str) -> Any:
    """One number for all inputs."""
    values = given[name] if isinstance(given[name], tuple) else (given[name],)
    if any(value != values[0] for value in values):
        raise _refusal(f"`{name}` per input of {method}", "give all inputs one number, or save the recipe as YAML")
    return values[0] if values else None


def _weighted_sum(writer: _Writer, node: Call, given: dict[str, Any]) -> str:
    _only(given, "weighted_sum", curve="linear")
    return _same("weighted_sum", "alpha")(writer, node, given)


def _linear(writer: _Writer, node: Call, given: dict[str, Any]) -> str:
    weights = given["weights"] or (1.0,) * len(node.inputs)
    if any(not isinstance(w, (int, float)) for w in weights) or not given["normalize"]:
        raise _refusal("linear with weights per block, or without normalising", "save the recipe as YAML")
    if len(set(weights)) == 1:
        return writer.merge("n_average", *map(writer.at, node.inputs))
    first, *rest = map(writer.at, node.inputs)
    return writer.chain(first, [(writer.merge("subtract", m, first), w / sum(weights)) for m, w in zip(rest, weights[1:], strict=True)])


def _add_difference(writer: _Writer, node: Call, given: dict[str, Any]) -> str:
    a, b, c = map(writer.at, node.inputs)
    return writer.merge("add_difference", a, writer.merge("subtract", b, c), writer.value(given["alpha"]))


def _perpendicular(writer: _Writer, node: Call, given: dict[str, Any]) -> str:
    a, b, c = map(writer.at, node.inputs)
    part = writer.merge("perpendicular_component", writer.merge("subtract", a, c), writer.merge("subtract", b, c))
    return writer.merge("add_difference", a, part, writer.value(given["alpha"]))


def _around_base(writer: _Writer, node: Call, scale: Any, method: str, *options: str) -> str:
    base, *models = map(writer.at, node.inputs)
    found = writer.merge(method, *(writer.merge("subtract", model, base) for model in models), *options)
    return writer.merge("add_difference", base, found, writer.number(scale))


def _ties(writer: _Writer, node: Call, given: dict[str, Any]) -> str:
    _only(given, "ties", normalize=True, undecided="none")
    if _equal(given, "weights", "ties") not in (None, 1):
        raise _refusal("weights of ties", "leave them out, or save the recipe as YAML")
    k, votes = writer.number(_equal(given, "density", "ties")), writer.number(given["sign"] == "magnitude")
    return _around_base(writer, node, given["scale"], "ties_sum", f"k={k}", f"vote_sgn={votes}")


def _model_stock(writer: _Writer, node: Call, given: dict[str, Any]) -> str:
    _only(given, "model_stock", over="rows", pairs="consecutive")
    return _around_base(writer, node, 1.0, "model_stock")


def _clamp(writer: _Writer, node: Call, given: dict[str, Any]) -> str:
    return writer.merge("clamp", *map(writer.at, node.inputs), f"stiffness={writer.value(given['stiffness'])}")


_WRITERS: dict[str, _Write] = {
    "weighted_sum": _weighted_sum,
    "linear": _linear,
    "slerp": _same("slerp", "alpha"),
    "add_difference": _add_difference,
    "perpendicular": _perpendicular,
    "geometric_sum": _same("geometric_sum", "alpha"),
    "multiply_quotient": _same("multiply_quotient", "alpha"),
    "add_cosine_a": _same("add_cosine_a", "alpha"),
    "add_cosine_b": _same("add_cosine_b", "alpha"),
    "crossover": _same("crossover", "alpha", "tilt"),
    "tensor_sum": _same("tensor_sum", "width", "offset"),
    "top_k_tensor_sum": _same("top_k_tensor_sum", "width", "offset"),
    "train_difference_mask": _same("train_difference_mask", "alpha"),
    "add_opposite_mask": _same("add_opposite_mask", "alpha"),
    "add_strict_opposite_mask": _same("add_strict_opposite_mask", "alpha"),
    "scale": _same("scale", "alpha"),
    "clamp": _clamp,
    "ties": _ties,
    "model_stock": _model_stock,
}
