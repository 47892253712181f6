"""From a recipe file to a Recipe, with every complaint at its line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from fluxsmith.errors import Position, RecipeError, UsageError, did_you_mean
from fluxsmith.io.dtypes import dtype_from_name
from fluxsmith.io.shards import parse_size
from fluxsmith.methods import Method, find_method
from fluxsmith.recipes.expressions import Expression, Model, call, model
from fluxsmith.recipes.formula import parse_formula
from fluxsmith.recipes.located import Located, parse_yaml, read_yaml
from fluxsmith.recipes.recipe import Guidance, OutputOptions, Recipe, Rule
from fluxsmith.recipes.schedules import Number, Ramp, Schedule, check_points
from fluxsmith.recipes.schema import InputEntry, ModelEntry, RecipeFile, RuleEntry, StepEntry
from fluxsmith.recipes.selectors import Selector

__all__ = ["load_preset", "load_recipe", "presets", "recipe_from_formula", "recipe_from_text"]

Where = Sequence[str | int]
_KINDS = {
    InputEntry: "a merge input", RuleEntry: "a rule", StepEntry: "a step", RecipeFile: "a recipe", ModelEntry: "a model",
}  # fmt: skip


def load_recipe(path: Path, *, models: Mapping[str, str] | None = None, assign: Sequence[str] = ()) -> Recipe:
    """A recipe file. `models` replaces references by name, `assign` are `a.b=value` changes.

    Raises RecipeError (exit code 4) with file, line and column.
    """
    if not path.exists():
        raise UsageError("usage.no-recipe", f"{path} does not exist", fix="fluxsmith new recipe -o recipe.yaml")
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
        raise UsageError("usage.unknown-preset", f"`{name}` is not a preset", hint=did_you_mean(name, list(known)), fix="fluxsmith list presets")
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
        return model(replaced or reference, name=name, components=parts)

    def _output(self) -> OutputOptions:
        output = self._file.output
        size = output.shard_size
        return OutputOptions(
            output.layout,
            dtype_from_name(output.dtype).name if output.dtype else None,
            parse_size(size) if isinstance(size, str) else size,
        )

    def _guidance(self, text: str | None) -> Guidance | None:
        if text is None:
            return None
        guidance = Guidance.parse(text)
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
        self._nodes[name] = self._step(StepEntry(formula=step) if isinstance(step, str) else step, ("steps", name))
        self._building.pop()
        return self._nodes[name]

    def _step(self, step: StepEntry | RuleEntry, where: Where) -> Expression:
        if step.formula is not None:
            return self._formula(step, where)
        if step.method is None:
            raise self._error("recipe.no-method", "a step needs a `method` with `inputs`, or a `formula`", where)
        method = self._placed(lambda: find_method(str(step.method)), (*where, "method"))
        if not step.inputs:
            raise self._error("recipe.no-inputs", f"{method.name} needs `inputs`", where)
        inputs, options = self._inputs(method, step, where)
        options |= {key: self._value(value, (*where, key)) for key, value in (step.model_extra or {}).items()}
        for key in step.model_extra or {}:
            if key not in method.options:
                known = [*type(step).model_fields, *method.options]
                hint = did_you_mean(key, known)
                raise self._error("recipe.unknown-key", f"`{key}` is no field of a step and no option of {method.name}", (*where, key), hint)
        return self._placed(lambda: call(method, inputs, options), where)

    def _formula(self, step: StepEntry | RuleEntry, where: Where) -> Expression:
        if step.method or step.inputs or step.model_extra:
            raise self._error("recipe.formula-and-method", "a step has a formula or a method, not both", where)
        names = _Names(lambda name: self._node(name, where), [*self._file.models, *self._file.steps])
        return parse_formula(str(step.formula), names, self._source.file)

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
            weights.append(1.0 if isinstance(entry, str) else self._value(entry.weight, (*place, "weight")))
        if "weights" in method.options:
            return nodes, {"weights": weights}
        weighted = [i for i, entry in enumerate(step.inputs or []) if not isinstance(entry, str) and "weight" in entry.model_fields_set]
        if weighted:
            place = (*where, "inputs", weighted[0], "weight")
            raise self._error("recipe.no-weights", f"{method.name} has no weights per input", place)
        return nodes, {}

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
                entries.append((Selector(key), number))
        return Schedule(default, tuple(entries))

    def _ramp(self, points: Any, where: Where) -> Ramp:
        if not isinstance(points, list) or not all(isinstance(p, (int, float)) for p in cast("list[Any]", points)):
            raise self._error("recipe.bad-ramp", "a ramp is a list of numbers", where)
        numbers = tuple(float(p) for p in cast("list[float]", points))
        self._placed(lambda: check_points(numbers), where)
        return Ramp(numbers)

    def _rule(self, rule: RuleEntry, where: Where) -> Rule:
        if rule.take is not None:
            if rule.method or rule.formula:
                raise self._error("recipe.take-and-method", "a rule takes from a model or has a method, not both", where)
            return Rule(Selector(rule.match), self._node(rule.take, (*where, "take")))
        return Rule(Selector(rule.match), self._step(rule, where))

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
    if deepest["type"] == "extra_forbidden":
        key = str(deepest["loc"][-1])
        entry = next((kind for kind in _KINDS if kind.__name__ in map(str, deepest["loc"])), RecipeFile)
        entry = _entry_at(where) or entry
        hint = did_you_mean(key, list(entry.model_fields))
        return RecipeError("recipe.unknown-key", f"`{key}` is not a field of {_KINDS[entry]}", at=source.position(where), hint=hint)
    name = ".".join(str(part) for part in deepest["loc"] if not str(part).endswith("Entry"))
    at: Position | None = source.position(where)
    if deepest["type"] == "missing":
        return RecipeError("recipe.missing-key", f"`{name}` is missing", at=at, facts={"file": source.file})
    return RecipeError("recipe.bad-value", f"`{name}`: {deepest['msg'].lower()}", at=at, facts={"file": source.file})


def _entry_at(where: Sequence[str | int]) -> Any:
    """The kind of entry whose field is named last in a path."""
    kinds: dict[int, Any] = {1: RecipeFile}
    if len(where) >= 2 and where[-2:-1] and isinstance(where[-2], int):
        return InputEntry if "inputs" in where else RuleEntry
    return kinds.get(len(where))
