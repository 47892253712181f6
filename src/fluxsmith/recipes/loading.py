"""From a recipe file to a Recipe, with every complaint at its line."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from fluxsmith.errors import Position, RecipeError, UsageError, did_you_mean
from fluxsmith.io.dtypes import dtype_from_name
from fluxsmith.io.shards import parse_size
from fluxsmith.methods import Method, find_method
from fluxsmith.recipes.expressions import Expression, Model, call, check_option, model
from fluxsmith.recipes.formula import parse_formula
from fluxsmith.recipes.located import Located, parse_yaml, read_yaml
from fluxsmith.recipes.recipe import Guidance, OutputOptions, Recipe, Rule
from fluxsmith.recipes.schedules import Number, Ramp, Schedule, check_points
from fluxsmith.recipes.schema import InputEntry, ModelEntry, OutputEntry, RecipeFile, RuleEntry, StepEntry
from fluxsmith.recipes.selectors import Selector

__all__ = ["load_preset", "load_recipe", "presets", "recipe_from_formula", "recipe_from_text"]

Where = Sequence[str | int]
_KINDS = {
    InputEntry: "a merge input", RuleEntry: "a rule", StepEntry: "a step", RecipeFile: "a recipe", ModelEntry: "a model",
    OutputEntry: "the output",
}  # fmt: skip
_FORMULA = "formula"  # the name of places in a formula until they are known as places in the file


def load_recipe(path: Path, *, models: Mapping[str, str] | None = None, assign: Sequence[str] = ()) -> Recipe:
    """A recipe file. `models` replaces references by name, `assign` are `a.b=value` changes.

    Raises RecipeError (exit code 4) with file, line and column.
    """
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError("usage.no-recipe", f"{path} {problem}", fix="fluxsmith new recipe -o recipe.yaml")
    return _build(read_yaml(path), models or {}, assign)


def recipe_from_text(text: str, file: str, *, models: Mapping[str, str] | None = None) -> Recipe:
    """A recipe that stands in the metadata of a file."""
    return _build(parse_yaml(text, file), models or {}, ())


def presets() -> dict[str, Path]:
    """The recipes that ship with the package, by name."""
    folder = Path(__file__).parent / "presets"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_preset(name: str, models: Mapping[str, str], assign: Sequence[str] = ()) -> Recipe:
    """A preset with some of its models replaced; raises UsageError where there is no such preset."""
    known = presets()
    if name not in known:
        raise UsageError(
            "usage.unknown-preset", f"`{name}` is not a preset", hint=did_you_mean(name, list(known)), fix="fluxsmith list presets"
        )
    return load_recipe(known[name], models=models, assign=assign)


def recipe_from_formula(text: str, models: Mapping[str, str]) -> Recipe:
    """The recipe of a one-line formula over named references."""
    nodes = {name: model(reference, name=name) for name, reference in models.items()}
    root = parse_formula(text, nodes)
    unused = [name for name, node in nodes.items() if node not in root.models()]
    if unused:
        raise RecipeError("recipe.unused-model", f"`{unused[0]}` is not used in the formula", fix=f"leave -m {unused[0]}=... out")
    return Recipe(root, title=text)


def _build(source: Located, models: Mapping[str, str], assign: Sequence[str]) -> Recipe:
    for change in assign:
        key, equals, value = change.partition("=")
        if not equals:
            raise UsageError("usage.bad-set", f"`--set {change}` has no `=`", fix="--set merge.density=0.4")
        source.assign(key, value)
    try:
        file = RecipeFile.model_validate(source.data)
    except ValidationError as error:
        raise _validation_error(source, error) from None
    return _Builder(source, file).recipe(models)


class _Builder:
    def __init__(self, source: Located, file: RecipeFile) -> None:
        self._source, self._file = source, file
        self._nodes: dict[str, Expression] = {}
        self._building: list[str] = []

    def recipe(self, replaced: Mapping[str, str]) -> Recipe:
        unknown = [name for name in replaced if name not in self._file.models]
        if unknown:
            raise UsageError(
                "usage.unknown-model", f"the recipe has no model `{unknown[0]}`", facts={"models": ", ".join(self._file.models)}
            )
        for name, entry in self._file.models.items():
            self._nodes[name] = self._model(name, entry, replaced.get(name))
        merge = self._file.merge
        step = StepEntry(formula=merge) if isinstance(merge, str) else merge
        root = self._step(step, ("merge",))
        rules = tuple(self._rule(rule, ("merge", "rules", i)) for i, rule in enumerate(step.rules))
        guidance = self._guidance(step.guidance)
        recipe = Recipe(
            root, rules, guidance, step.missing, self._output(), self._file.seed, self._file.title,
            self._file.compute, self._file.structural, self._file.strip,
        )  # fmt: skip
        self._check_used(recipe, guidance)
        return recipe

    def _model(self, name: str, entry: str | ModelEntry, replaced: str | None) -> Model:
        parts = entry.components if isinstance(entry, ModelEntry) else ()
        reference = entry.checkpoint if isinstance(entry, ModelEntry) else entry
        return Model(replaced or reference, name, tuple(parts), self._source.position(("models", name)))

    def _output(self) -> OutputOptions:
        output = self._file.output
        dtype = dtype_from_name(output.dtype).name if output.dtype else None
        try:
            size = None if output.shard_size is None else parse_size(str(output.shard_size))
        except UsageError as error:
            raise self._error("recipe.bad-value", error.message, ("output", "shard_size"), error.fix) from None
        return OutputOptions(output.layout, dtype, size)

    def _guidance(self, text: str | None) -> Guidance | None:
        if text is None:
            return None
        guidance: Guidance = self._placed(lambda: Guidance.parse(text), ("merge", "guidance"))
        if guidance.policy == "from":
            self._node(guidance.model, ("merge", "guidance"))
        return guidance

    def _node(self, name: str, where: Where) -> Expression:
        """A model or step by name; steps are built when they are first used."""
        if name in self._nodes:
            return self._nodes[name]
        if name not in self._file.steps:
            known = [*self._file.models, *self._file.steps]
            raise self._error("recipe.unknown-name", f"`{name}` is no model or step of this recipe", where, did_you_mean(name, known))
        if name in self._building:
            raise self._error("recipe.cycle", f"step `{name}` uses itself: {' -> '.join([*self._building, name])}", ("steps", name))
        self._building.append(name)
        step = self._file.steps[name]
        for field in ("rules", "guidance", "missing"):
            if isinstance(step, StepEntry) and field in step.model_fields_set:
                raise self._error("recipe.not-in-a-step", f"`{field}` is said of the merge, not of a step", ("steps", name, field))
        self._nodes[name] = self._step(StepEntry(formula=step) if isinstance(step, str) else step, ("steps", name))
        self._building.pop()
        return self._nodes[name]

    def _step(self, step: StepEntry | RuleEntry, where: Where) -> Expression:
        if step.formula is not None:
            return self._formula(step, where)
        if step.method is None:
            self._check_options(step, None, where)
            raise self._error("recipe.no-method", "a step needs a `method` with `inputs`, or a `formula`", where)
        method: Method = self._placed(lambda: find_method(str(step.method)), (*where, "method"))
        self._check_options(step, method, where)
        if not step.inputs:
            raise self._error("recipe.no-inputs", f"{method.name} needs `inputs`", where)
        inputs, options = self._inputs(method, step, where)
        count = len(inputs) - len(method.inputs) + 1
        for key, given in (step.model_extra or {}).items():
            value = self._value(given, (*where, key))
            options[key] = self._placed(lambda key=key, value=value: check_option(method, key, value, count), (*where, key))
        return self._placed(lambda: call(method, inputs, options), where)

    def _check_options(self, step: StepEntry | RuleEntry, method: Method | None, where: Where) -> None:
        """Every other key of a step must be an option of its method."""
        kind = _KINDS[type(step)]
        options = list(method.options) if method else []
        for key in step.model_extra or {}:
            if key not in options:
                hint = did_you_mean(key, [*type(step).model_fields, *options])
                what = f"no field of {kind} and no option of {method.name}" if method else f"no field of {kind}"
                raise self._error("recipe.unknown-key", f"`{key}` is {what}", (*where, key), hint)

    def _formula(self, step: StepEntry | RuleEntry, where: Where) -> Expression:
        if step.method or step.base or step.inputs or step.model_extra:
            raise self._error("recipe.formula-and-method", "a step has a formula or a method, not both", where)
        names = _Names(lambda name: self._node(name, where), [*self._file.models, *self._file.steps])
        try:
            return parse_formula(str(step.formula), names, _FORMULA, "add it to `models`")
        except RecipeError as error:
            if error.at is not None and error.at.file == _FORMULA:
                error.at = self._in_file(error.at, (*where, "formula"))
            raise

    def _in_file(self, at: Position, where: Where) -> Position | None:
        """A place in a formula as a place in the file that it stands in."""
        key = self._source.position(where)
        start = key.text.find(at.text, key.column) if key else -1
        return replace(key, column=start + at.column, width=at.width) if key and start >= 0 else key

    def _inputs(self, method: Method, step: StepEntry | RuleEntry, where: Where) -> tuple[list[Expression], dict[str, Any]]:
        nodes: list[Expression] = []
        if step.base is not None:
            nodes.append(self._node(step.base, (*where, "base")))
        elif method.inputs[0].name == "base":
            raise self._error("recipe.no-base", f"{method.name} needs a `base`", where)
        weights: list[Any] = []
        for i, entry in enumerate(step.inputs or []):
            place = (*where, "inputs", i)
            nodes.append(self._node(entry if isinstance(entry, str) else entry.model, place))
            weights.append(1.0 if isinstance(entry, str) else self._weight(method, step, entry, (*place, "weight")))
        return nodes, {"weights": weights} if "weights" in method.options else {}

    def _weight(self, method: Method, step: StepEntry | RuleEntry, entry: InputEntry, where: Where) -> Any:
        """The weight of one input; one that nothing would read is an error."""
        given = "weight" in entry.model_fields_set
        if given and "weights" not in method.options:
            raise self._error("recipe.no-weights", f"{method.name} has no weights per input", where)
        if given and "weights" in (step.model_extra or {}):
            raise self._error("recipe.no-weights", "weights are given twice: here and in `weights`", where)
        value = self._value(entry.weight, where)
        if "weights" in method.options:
            self._placed(lambda: check_option(method, "weights", [value], 1), where)
        return value

    def _value(self, value: Any, where: Where) -> Any:
        """A number, word, ramp or schedule from plain data."""
        if not isinstance(value, dict):
            return value
        fields = cast("dict[str, Any]", value)
        if set(fields) == {"ramp"}:
            return self._ramp(fields["ramp"], where)
        entries: list[tuple[Selector, float | Ramp]] = []
        default: float | Ramp | None = None
        for key, inner in fields.items():
            number = cast("Number", self._value(inner, (*where, key)))
            if isinstance(number, (Schedule, str, bool, list)):
                raise self._error("recipe.bad-value", "a map of selectors holds numbers or ramps", (*where, key))
            if key == "default":
                default = number
            else:
                entries.append((Selector(key, self._source.position((*where, key))), number))
        return Schedule(default, tuple(entries), self._source.position(where))

    def _ramp(self, points: Any, where: Where) -> Ramp:
        if not isinstance(points, list) or not all(type(p) in (int, float) for p in cast("list[Any]", points)):
            raise self._error("recipe.bad-ramp", "a ramp is a list of numbers", where)
        numbers = tuple(float(p) for p in cast("list[float]", points))
        self._placed(lambda: check_points(numbers), where)
        return Ramp(numbers)

    def _rule(self, rule: RuleEntry, where: Where) -> Rule:
        selector = Selector(rule.match, self._source.position((*where, "match")))
        if rule.take is not None:
            if rule.method or rule.formula or rule.base or rule.inputs:
                raise self._error("recipe.take-and-method", "a rule takes from a model or has a method, not both", where)
            self._check_options(rule, None, where)
            return Rule(selector, self._node(rule.take, (*where, "take")))
        return Rule(selector, self._step(rule, where))

    def _check_used(self, recipe: Recipe, guidance: Guidance | None) -> None:
        used = {m.name for m in recipe.models()} | ({guidance.model} if guidance else set())
        for kind in ("models", "steps"):
            for name in getattr(self._file, kind):
                if name not in used and name not in self._nodes:
                    raise self._error("recipe.unused-step", f"step `{name}` is not used", (kind, name))
                if kind == "models" and name not in used:
                    raise self._error("recipe.unused-model", f"model `{name}` is not used", (kind, name))

    def _placed(self, build: Any, where: Where) -> Any:
        """Run `build`; an error without a position gets the one of `where`."""
        try:
            return build()
        except RecipeError as error:
            error.at = error.at or self._source.position(where)
            raise

    def _error(self, code: str, message: str, where: Where, hint: str | None = None) -> RecipeError:
        return RecipeError(code, message, at=self._source.position(where), hint=hint)


class _Names(dict[str, Expression]):
    """Names that are looked up when a formula uses them, so that steps may stand in any order."""

    def __init__(self, find: Any, known: Sequence[str]) -> None:
        super().__init__()
        self._find, self._known = find, known

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def __getitem__(self, name: str) -> Expression:
        return self._find(name)

    def __iter__(self) -> Any:
        return iter(self._known)


def _validation_error(source: Located, error: ValidationError) -> RecipeError:
    """The deepest complaint of the validator, at its place."""
    problems = error.errors(include_url=False)
    deepest = max(problems, key=lambda p: (len(source.within(p["loc"])), p["type"] == "extra_forbidden"))
    where = source.within(deepest["loc"])
    if not isinstance(source.data, dict):
        found = "empty" if source.data is None else f"a {type(source.data).__name__}"
        fix = "fluxsmith new recipe -o recipe.yaml writes one to start from"
        return RecipeError("recipe.bad-value", f"a recipe is a map of keys, {source.file} is {found}", facts={"file": source.file}, fix=fix)
    if deepest["type"] == "extra_forbidden":
        key, entry = str(deepest["loc"][-1]), _entry_at(where)
        hint = did_you_mean(key, list(entry.model_fields))
        return RecipeError("recipe.unknown-key", f"`{key}` is not a field of {_KINDS[entry]}", at=source.position(where), hint=hint)
    at: Position | None = source.position(where)
    if deepest["type"] == "missing":
        name = ".".join(map(str, (*where, deepest["loc"][-1])))
        fix = "fluxsmith new recipe shows what a recipe has"
        return RecipeError("recipe.missing-key", f"`{name}` is missing", at=at, facts={"file": source.file}, fix=fix)
    name, expected = ".".join(map(str, where)), re.sub(r"a valid dictionary( or instance of \w+)?", "a map of keys", deepest["msg"])
    return RecipeError("recipe.bad-value", f"`{name}`: {expected[0].lower()}{expected[1:]}", at=at, facts={"file": source.file})


def _entry_at(where: Sequence[str | int]) -> Any:
    """The kind of entry whose field is named last in a path."""
    if len(where) > 1 and isinstance(where[-2], int):
        return InputEntry if "inputs" in where else RuleEntry
    return {"output": OutputEntry, "models": ModelEntry}.get(str(where[0]), RecipeFile) if len(where) > 1 else RecipeFile
