"""mergekit's YAML, read as it is: one merge, or several documents of which later ones use earlier ones by name.

    merge_method: ties
    base_model: flux1-dev.safetensors
    models:
      - {model: a.safetensors, parameters: {weight: 0.5, density: [{filter: double_blocks, value: 0.6}, {value: 0.4}]}}
    parameters: {normalize: true}

Filters are parts of names, first match wins; a list of numbers is a ramp over the blocks (mergekit-pytorch takes its
first number everywhere). Arithmetic is in float32 whatever `dtype` says; the result is written as `out_dtype`, or `dtype`.
What concerns language models (`slices`, `tokenizer`, ...) is refused by name.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from fluxsmith.errors import UsageError, did_you_mean
from fluxsmith.io.located import Located
from fluxsmith.methods import find_method
from fluxsmith.recipes.calls import call, check_option
from fluxsmith.recipes.expressions import Adapter, Expression, Model, adapter, model
from fluxsmith.recipes.mergekit_documents import Document, Entry, Where
from fluxsmith.recipes.mergekit_methods import REQUIRED, ForeignMethod, Parameter
from fluxsmith.recipes.recipe import OutputOptions, Recipe
from fluxsmith.recipes.schedules import Number, Ramp, Schedule, check_points
from fluxsmith.recipes.selectors import Selector

__all__ = ["is_mergekit", "recipe_from_mergekit"]

_SIGN = re.compile(r"^\s*[{\"']*merge_method[\"']?\s*:", re.MULTILINE)
_PREFIX = "model.diffusion_model."
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def is_mergekit(text: str) -> bool:
    """Whether a YAML text is one of mergekit's."""
    return _SIGN.search(text) is not None


def recipe_from_mergekit(documents: Sequence[Located], models: Mapping[str, str], prefix: str = "") -> Recipe:
    """The recipe of the documents of one file; `models` replaces references by name (the stem of the file, after `prefix`).

    Raises RecipeError with file, line and column.
    """
    return _Reader(documents, models, prefix).recipe()


@dataclass(frozen=True)
class _Condition:
    """One value of a parameter, for tensors whose name holds `filter` (all where it is None)."""

    filter: str | None
    value: Any
    where: Where


class _Reader:
    def __init__(self, documents: Sequence[Located], replaced: Mapping[str, str], prefix: str) -> None:
        self._documents = [Document(source) for source in documents]
        self._named: dict[str, Document] = {}
        for document in self._documents:
            name = document.data.get("name")
            if name is not None and self._named.setdefault(str(name), document) is not document:
                raise document.error("recipe.duplicate-name", f"`{name}` is defined twice", ("name",))
        self._replaced, self._prefix = replaced, prefix
        self._models: dict[str, Model | Adapter] = {}
        self._nodes: dict[int, Expression] = {}
        self._building: list[str] = []

    def recipe(self) -> Recipe:
        last = self._last()
        root = self._merge(last)
        unknown = [name for name in self._replaced if name not in {node.name for node in self._models.values()}]
        if unknown:
            names = ", ".join(node.name for node in self._models.values())
            raise UsageError("usage.unknown-model", f"the recipe has no model `{unknown[0]}`", facts={"models": names})
        unused = [document for document in self._documents if id(document) not in self._nodes]
        if unused:
            raise unused[0].error("recipe.unused-step", f"`{unused[0].data.get('name')}` is not used", ("name",))
        return Recipe(root, output=OutputOptions(dtype=last.dtype()))

    def _last(self) -> "Document":
        """The document whose result is the file's: the one without a name, or that no other one uses."""
        unnamed = [document for document in self._documents if "name" not in document.data]
        if len(unnamed) > 1:
            raise unnamed[1].error("recipe.mergekit-option", "two documents have no `name`: which is the result?", ("merge_method",))
        if unnamed:
            return unnamed[0]
        used = {reference for document in self._documents for reference in document.references()}
        open_ends = [document for document in self._documents if document.data["name"] not in used]
        if not open_ends:
            names = " -> ".join([*self._named, next(iter(self._named))])
            raise self._documents[0].error("recipe.cycle", f"every document uses another one: {names}", ("name",))
        return open_ends[-1]

    def _merge(self, document: "Document") -> Expression:
        if id(document) not in self._nodes:
            name = str(document.data.get("name", "the result"))
            if name in self._building:
                raise document.error("recipe.cycle", f"`{name}` uses itself: {' -> '.join([*self._building, name])}", ("name",))
            self._building.append(name)
            method = document.method()
            entries, base = document.entries(), document.base()
            node = self._call(document, method, entries, base)
            self._building.pop()
            self._nodes[id(document)] = node
        return self._nodes[id(document)]

    def _call(self, document: "Document", method: ForeignMethod, entries: list[Entry], base: Entry | None) -> Expression:
        others = [entry for entry in entries if base is None or entry.reference != base.reference]
        if method.base in ("first", "pair") and base is None:
            raise document.error("recipe.no-base", f"{document.name} needs a `base_model`", ("merge_method",))
        if method.base == "pair" and len(others) != 1:
            message = f"{document.name} merges a base and one other model, {len(others)} others are given"
            raise document.error("recipe.wrong-arity", message, ("models",))
        if method.base == "input" and base is not None and all(entry.reference != base.reference for entry in entries):
            entries = [*entries, base]
        varying = entries if method.base == "input" else others
        if not varying:
            raise document.error("recipe.no-inputs", f"{document.name} needs `models` beside its base", ("models",))
        nodes = [self._node(document, entry) for entry in varying]
        start = None if base is None or method.base == "input" else self._node(document, base)
        options = _Options(document, method, varying, base).read()
        return document.placed(lambda: _apply(document, method, start, nodes, options), ("merge_method",))

    def _node(self, document: "Document", entry: Entry) -> Expression:
        reference = entry.reference
        if reference in self._named:
            return self._merge(self._named[reference])
        first, plus, lora = ("", "", "") if Path(reference).exists() else reference.partition("+")
        if plus:  # a model with a LoRA baked in
            return self._leaf(document, entry, first, model(first)) + self._leaf(document, entry, lora, adapter(lora))
        return self._leaf(document, entry, reference, model(reference))

    def _leaf(self, document: "Document", entry: Entry, reference: str, found: Model | Adapter) -> Expression:
        """A model or adapter, once for each reference, under a name of its own."""
        if reference not in self._models:
            taken, stem = {node.name for node in self._models.values()}, self._prefix + found.name
            name = next(n for i in range(1, len(taken) + 2) if (n := stem if i == 1 else f"{stem}_{i}") not in taken)
            at = document.source.position(entry.where)
            self._models[reference] = replace(found, name=name, reference=self._replaced.get(name, reference), at=at)
        return self._models[reference]


class _Options:
    """The parameters of one merge as options of our method."""

    def __init__(self, document: Document, method: ForeignMethod, entries: Sequence[Entry], base: Entry | None) -> None:
        self._document, self._method, self._entries = document, method, entries
        self._shared = document.parameters()
        self._listed = [*document.entries(), *([base] if base else [])]

    def read(self) -> dict[str, Any]:
        """Every parameter of the method by mergekit's name: one number or word, or a list with one per input."""
        self._check_names()
        options: dict[str, Any] = {}
        for name, parameter in self._method.parameters.items():
            if parameter.per_input:
                options[name] = [self._value(name, parameter, entry) for entry in self._entries]
            else:
                options[name] = self._value(name, parameter, None)
        return options

    def _check_names(self) -> None:
        known = self._method.parameters
        for name in self._shared:
            self._check_name(name, ("parameters", name))
        for entry in self._listed:
            for name in entry.parameters:
                where = (*entry.where[:-1], "parameters", name)
                self._check_name(name, where)
                if not known[name].per_input:
                    message = f"`{name}` is said of the whole merge, not of one model (mergekit does not read it here)"
                    raise self._document.error("recipe.mergekit-option", message, where)

    def _check_name(self, name: str, where: Where) -> None:
        if name not in self._method.parameters:
            hint = did_you_mean(name, list(self._method.parameters))
            message = f"`{name}` is no parameter of {self._document.name}"
            raise self._document.error("recipe.mergekit-option", message, where, hint, "leave it out")

    def _value(self, name: str, parameter: Parameter, entry: Entry | None) -> Any:
        conditions = self._conditions(name, entry)
        if not conditions and parameter.default is REQUIRED:
            message = f"{self._document.name} needs `{name}`" + (f" for {entry.reference}" if entry else "")
            raise self._document.error("recipe.missing-key", message, entry.where if entry else ("merge_method",))
        if parameter.default is not REQUIRED and (not conditions or conditions[-1].filter is not None):
            conditions.append(_Condition(None, parameter.default, ("merge_method",)))
        value = self._switch(name, conditions) if parameter.kind == "switch" else self._number(conditions, parameter.factor)
        if parameter.restricted and value != parameter.only:
            message = f"`{name}: {conditions[0].value}` of {self._document.name} has no meaning here"
            raise self._document.error("recipe.mergekit-option", message, conditions[0].where, fix="leave it out")
        return value if parameter.words is None else parameter.words[value]

    def _conditions(self, name: str, entry: Entry | None) -> list[_Condition]:
        """What is said of a parameter, the model's own before that of the whole merge; what is never reached is left out."""
        found: list[_Condition] = []
        own: list[tuple[Mapping[str, Any], Where]] = [(entry.parameters, (*entry.where[:-1], "parameters"))] if entry else []
        for source, where in [*own, (self._shared, ("parameters",))]:
            if name in source and not any(condition.filter is None for condition in found):
                found += self._split(source[name], (*where, name))
        ends = next((i for i, condition in enumerate(found) if condition.filter is None), len(found))
        return found[: ends + 1]

    def _split(self, value: Any, where: Where) -> list[_Condition]:
        conditional = isinstance(value, list) and value and all(isinstance(v, dict) for v in cast("list[Any]", value))
        if isinstance(value, dict):
            return [self._condition(cast("dict[str, Any]", value), where)]
        if conditional:
            return [self._condition(v, (*where, i)) for i, v in enumerate(cast("list[dict[str, Any]]", value))]
        return [_Condition(None, value, where)]

    def _condition(self, fields: Mapping[str, Any], where: Where) -> _Condition:
        if "value" not in fields or set(fields) - {"value", "filter"}:
            raise self._document.error("recipe.bad-value", "a conditional value is {filter: PART OF A NAME, value: NUMBER}", where)
        word = fields.get("filter")
        return _Condition(None if word in (None, "*") else str(word), fields["value"], where)

    def _switch(self, name: str, conditions: Sequence[_Condition]) -> bool:
        first = conditions[0]
        value = _WORDS.get(str(first.value).lower()) if isinstance(first.value, (bool, str)) else None
        if first.filter is not None or value is None:
            raise self._document.error("recipe.bad-value", f"`{name}` is true or false, for the whole merge", first.where)
        return value

    def _number(self, conditions: Sequence[_Condition], factor: float) -> Number:
        numbers = [self._one(condition, factor) for condition in conditions]
        if conditions[0].filter is None:
            return numbers[0]
        default = numbers[-1] if conditions[-1].filter is None else None
        # The first filter that matches wins there, the last selector here.
        entries = [
            (Selector(f"re:{re.escape(c.filter.removeprefix(_PREFIX))}", self._document.position(c.where)), number)
            for c, number in zip(conditions, numbers, strict=True)
            if c.filter is not None
        ]
        return Schedule(default, tuple(reversed(entries)), self._document.position(conditions[0].where))

    def _one(self, condition: _Condition, factor: float) -> float | Ramp:
        """A number, or a gradient as a ramp over the blocks."""
        if isinstance(condition.value, list):
            points = [self._float(v, condition) for v in cast("list[Any]", condition.value)]
            if len(points) == 1:
                return points[0] * factor
            self._document.placed(lambda: check_points(points), condition.where)
            return Ramp(tuple(point * factor for point in points))
        return self._float(condition.value, condition) * factor

    def _float(self, value: Any, condition: _Condition) -> float:
        try:
            if isinstance(value, bool):
                raise ValueError
            return float(value)  # also `1e-4`, which is text in YAML 1.1
        except (TypeError, ValueError):
            raise self._document.error("recipe.bad-value", f"`{value}` is not a number", condition.where) from None


def _apply(
    document: Document, foreign: ForeignMethod, base: Expression | None, nodes: Sequence[Expression], given: Mapping[str, Any]
) -> Expression:
    """Our method with the values of mergekit's parameters."""
    method = find_method(foreign.ours)
    options = {p.ours: given[name] for name, p in foreign.parameters.items() if p.ours is not None}
    for name, parameter in foreign.parameters.items():
        ours = parameter.ours or ""
        if parameter.per_input and ours in method.options and not method.options[ours].per_input:
            options[ours] = _one_for_all(document, name, given[name])
    if document.name == "nuslerp":
        options = _nuslerp_options(document, nodes, given)
    for name, parameter in foreign.parameters.items():
        if parameter.ours in options:  # at the parameter's own place, not at the method's
            document.placed(
                lambda p=parameter: check_option(method, str(p.ours), options[str(p.ours)], len(nodes)), _place_of(document, name)
            )
    if foreign.base == "origin" and base is not None:
        return base + call(method, [node - base for node in nodes], options)
    return call(method, nodes if base is None else [base, *nodes], options)


def _one_for_all(document: Document, name: str, values: Sequence[Number]) -> Number:
    """A number that is one per model there and one for all here."""
    if any(value != values[0] for value in values):
        message = f"`{name}` of {document.name} is one number for all models here"
        raise document.error("recipe.mergekit-option", message, _place_of(document, name))
    return values[0]


def _place_of(document: Document, name: str) -> Where:
    """Where a parameter is first named."""
    if name in document.parameters():
        return ("parameters", name)
    own = (entry for entry in document.entries() if name in entry.parameters)
    return next(((*entry.where[:-1], "parameters", name) for entry in own), ("merge_method",))


def _nuslerp_options(document: Document, nodes: Sequence[Expression], given: Mapping[str, Any]) -> dict[str, Any]:
    """Two weights as the place on the arc; rows, columns or whole tensors."""
    if len(nodes) != 2:
        raise document.error("recipe.wrong-arity", f"nuslerp merges two models beside its base, {len(nodes)} are given", ("models",))
    over = "tensor" if given["nuslerp_flatten"] else "columns" if given["nuslerp_row_wise"] else "rows"
    return {"alpha": _share_of_second(document, *given["weight"]), "over": over}


def _share_of_second(document: Document, first: Number, second: Number) -> Number:
    def share(a: float, b: float) -> float:
        return 0.5 if abs(a + b) < 1e-6 else b / (a + b)

    if isinstance(first, (int, float)) and isinstance(second, (int, float)):
        return share(first, second)
    if isinstance(first, Ramp) and isinstance(second, Ramp):
        sums = {round(a + b, 9) for a, b in zip(first.points, second.points, strict=False)}
        if len(first.points) == len(second.points) and len(sums) == 1:
            return Ramp(tuple(map(share, first.points, second.points)))
    message = "weights of nuslerp that differ from tensor to tensor must add up to the same everywhere"
    raise document.error("recipe.mergekit-option", message, _place_of(document, "weight"), fix="use slerp with a gradient `t`")
