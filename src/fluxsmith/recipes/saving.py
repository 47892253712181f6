"""From a Recipe back to YAML, so that every output can carry the recipe that makes it again.

Nested calls become named steps; linear combinations become formulas. `loading.recipe_from_text` reads the result.
"""

import io
from dataclasses import replace
from typing import Any, cast

from fluxsmith.recipes.expressions import Adapter, Call, Combination, Component, Expression, Fallback, Literal, Model, Nothing, walk
from fluxsmith.recipes.formula import show
from fluxsmith.recipes.recipe import Recipe, Rule
from fluxsmith.recipes.schedules import Ramp, Schedule

__all__ = ["recipe_to_dict", "recipe_to_text"]


def recipe_to_text(recipe: Recipe) -> str:
    """The recipe as YAML text."""
    from ruamel.yaml import YAML

    stream = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 200
    yaml.dump(recipe_to_dict(recipe), stream)
    return stream.getvalue()


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data in the form of a recipe file."""
    writer = _Writer()
    top = _bare(recipe.root)
    for root in (top, *(_bare(rule.expression) for rule in recipe.rules)):
        for node in walk(root)[:-1]:  # inputs first, so that no depth of nesting is one of recursion
            writer.name(node)
    body = writer.step(top)
    merge: dict[str, Any] = {"formula": body} if isinstance(body, str) else body
    merge |= _policies(recipe, writer)
    data: dict[str, Any] = {"fluxsmith": 1}
    if recipe.title:
        data["title"] = recipe.title
    data["models"] = {m.name: _model(m) for m in recipe.models()} | {a.name: writer.adapter(a) for a in recipe.adapters()}
    if writer.steps:
        data["steps"] = writer.steps
    data["merge"] = merge
    options = {"layout": recipe.output.layout, "dtype": _type_name(recipe.output.dtype), "shard_size": recipe.output.shard_size}
    output: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    if recipe.output.unquantised:
        output["unquantised"] = [selector.text for selector in recipe.output.unquantised]
    if output:
        data["output"] = output
    for key, value, default in (
        ("seed", recipe.seed, 0), ("compute", recipe.compute, "fp32"),
        ("structural", recipe.structural, False), ("strip", recipe.strip, ""),
    ):  # fmt: skip
        if value != default:
            data[key] = value
    return data


def _policies(recipe: Recipe, writer: "_Writer") -> dict[str, Any]:
    """What is said of the merge beside its method."""
    said: dict[str, Any] = {}
    if recipe.components:
        said["components"] = list(recipe.components)
    if recipe.rest:
        names = [model.name for model in recipe.rest]
        said["rest"] = names if len(names) > 1 else names[0]
    if recipe.rules:
        said["rules"] = [writer.rule(rule) for rule in recipe.rules]
    if recipe.guidance:
        said["guidance"] = str(recipe.guidance)
    if recipe.missing != "error":
        said["missing"] = recipe.missing
    return said


class _Writer:
    def __init__(self) -> None:
        self.steps: dict[str, Any] = {}
        self._names: dict[int, str] = {}

    def step(self, node: Expression) -> Any:
        """A formula, or a mapping with method and inputs."""
        if isinstance(node, (Model, Adapter)):
            return node.name
        if isinstance(node, Nothing):
            return dict[str, Any]()
        if isinstance(node, Combination):
            return show(Combination(tuple((self._leaf(term), factor) for term, factor in node.terms)))
        if isinstance(node, Fallback):
            return show(Fallback(self._leaf(node.first), self._leaf(node.second)))
        if isinstance(node, Component):
            return show(replace(node, node=self._leaf(node.node)))
        if isinstance(node, Literal):
            return {"literal": _number(node.value)}
        assert isinstance(node, Call)
        return self._call(node)

    def adapter(self, node: Adapter) -> dict[str, Any]:
        """The entry of an adapter among the models."""
        data: dict[str, Any] = {"adapter": node.reference}
        if node.weight != 1.0:
            data["weight"] = _number(node.weight)
        if node.base is not None:
            data["base"] = self.name(node.base)
        if node.alpha is not None:
            data["alpha"] = node.alpha
        lists = {"components": list(node.components), "ignore": list(node.ignore)}
        return data | {key: value for key, value in lists.items() if value}

    def rule(self, rule: Rule) -> dict[str, Any]:
        if isinstance(rule.expression, Model):  # an adapter is no weight, so no rule takes one
            return {"match": rule.selector.text, "take": rule.expression.name}
        body = self.step(_bare(rule.expression))
        return {"match": rule.selector.text} | ({"formula": body} if isinstance(body, str) else body)

    def _leaf(self, node: Expression) -> Expression:
        return node if isinstance(node, (Model, Adapter)) else Model("", self.name(node))

    def name(self, node: Expression) -> str:
        """The name under which other steps use a node; a new step where it has none yet."""
        node = _bare(node)
        if isinstance(node, (Model, Adapter)):
            return node.name
        if id(node) not in self._names:
            body = self.step(node)
            self._names[id(node)] = f"step_{len(self.steps) + 1}"
            self.steps[self._names[id(node)]] = body
        return self._names[id(node)]

    def _call(self, node: Call) -> dict[str, Any]:
        names = [self.name(i) for i in node.inputs]
        body: dict[str, Any] = {"method": node.method.name}
        if node.method.inputs[0].name == "base":
            body["base"], names = names[0], names[1:]
        lists = {key: value for key, value in node.options.items() if isinstance(value, tuple) and len(value) == len(names)}
        if lists:
            columns = {"weight" if key == "weights" else key: [self._value(v) for v in value] for key, value in lists.items()}
            body["inputs"] = [{"model": n} | {key: values[i] for key, values in columns.items()} for i, n in enumerate(names)]
        else:
            body["inputs"] = names
        return body | {key: self._value(value) for key, value in node.options.items() if key not in lists}

    def _value(self, value: Any) -> Any:
        """An option as plain data; nodes by name."""
        if isinstance(value, tuple):
            return [self._value(v) for v in cast("tuple[Any, ...]", value)]
        return {"model": self.name(value)} if isinstance(value, Expression) else _number(value)


def _bare(node: Expression) -> Expression:
    """A node without sums around it that are once itself, which a formula does not show."""
    while isinstance(node, Combination) and len(node.terms) == 1 and node.terms[0][1] == 1:
        node = node.terms[0][0]
    return node


def _model(model: Model) -> Any:
    more = {"components": list(model.components)} if model.components else {}
    more |= {"holds": model.holds} if model.holds != "weight" else {}
    return {"checkpoint": model.reference, **more} if more else model.reference


def _number(value: Any) -> Any:
    if isinstance(value, Ramp):
        return {"ramp": list(value.points)}
    if isinstance(value, Schedule):
        data = {} if value.default is None else {"default": _number(value.default)}
        return data | {selector.text: _number(number) for selector, number in value.entries}
    return value


def _type_name(dtype: str | None) -> str | None:
    from fluxsmith.io.schemes import output_type_name

    return output_type_name(dtype) if dtype else None
