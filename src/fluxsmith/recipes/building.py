"""From the checked fields of a recipe file to expressions: names looked up, methods called, every complaint at its line."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from fluxsmith.errors import Position, RecipeError, UsageError, did_you_mean
from fluxsmith.io.located import Located
from fluxsmith.io.schemes import output_type
from fluxsmith.io.shards import parse_size
from fluxsmith.methods import Method, find_method
from fluxsmith.recipes.calls import call, check_option
from fluxsmith.recipes.expressions import Adapter, Expression, Model, Nothing, literal, walk
from fluxsmith.recipes.formula import parse_formula
from fluxsmith.recipes.recipe import Guidance, OutputOptions, Recipe, Rule
from fluxsmith.recipes.schedules import Number, Ramp, Schedule, check_points
from fluxsmith.recipes.schema import InputEntry, ModelEntry, OutputEntry, RecipeFile, RuleEntry, StepEntry
from fluxsmith.recipes.selectors import Selector

__all__ = ["KINDS", "Builder", "Foreign", "Source"]

Where = Sequence[str | int]
Source = tuple[Located, RecipeFile]
Foreign = Callable[[Path, str], Recipe | None]
KINDS = {
    InputEntry: "a merge input", RuleEntry: "a rule", StepEntry: "a step", RecipeFile: "a recipe", ModelEntry: "a model",
    OutputEntry: "the output",
}  # fmt: skip
_FORMULA = "formula"  # the name of places in a formula until they are known as places in the file
_WEIGHTS = "weights"  # the option that an input's `weight` is one of


class Builder:
    """Builds one recipe. `read` opens another recipe file, for includes and for recipes that stand for a model; `foreign`
    reads one that is sd-mecha's or mergekit's, and gives None for ours.

    `prefix` stands before the names of models in a recipe that is part of another one; `above` are the files that are
    being read, for the check that none includes itself.
    """

    def __init__(
        self,
        source: Located,
        file: RecipeFile,
        read: Callable[[Path], Source],
        foreign: Foreign,
        *,
        prefix: str = "",
        above: Sequence[Path] = (),
    ) -> None:
        self._source, self._file, self._read, self._foreign, self._prefix = source, file, read, foreign, prefix
        self._above = [*above, Path(source.file).resolve()]
        self._models: dict[str, tuple[Located, str | ModelEntry]] = {}
        self._steps: dict[str, tuple[Located, str | StepEntry]] = {}
        self._nodes: dict[str, Expression] = {}
        self._building: list[str] = []
        self._replaced: Mapping[str, str] = {}

    def recipe(self, replaced: Mapping[str, str]) -> Recipe:
        """The recipe; `replaced` are references that take the place of the file's, by model name."""
        self._define(self._source, self._file, self._above)
        unknown = [name for name in replaced if name not in self._models]
        if unknown:
            raise UsageError("usage.unknown-model", f"the recipe has no model `{unknown[0]}`", facts={"models": ", ".join(self._models)})
        self._replaced = replaced
        for name in self._models:
            self._node(name, ("models", name))
        merge = self._file.merge
        if merge is None:
            raise self._error("recipe.missing-key", "`merge` is missing", ("models",))
        step = StepEntry(formula=merge) if isinstance(merge, str) else merge
        rest = self._rest(step.rest)
        copies = bool(rest) and not (step.method or step.formula or step.inputs or step.literal is not None)
        root = Nothing() if copies else self._step(step, ("merge",))
        rules = tuple(self._rule(rule, ("merge", "rules", i)) for i, rule in enumerate(step.rules))
        guidance = self._guidance(step.guidance)
        recipe = Recipe(
            root, rules, guidance, step.missing, self._output(), self._file.seed, self._file.title,
            self._file.compute, self._file.structural, self._file.strip, components=tuple(step.components), rest=rest,
        )  # fmt: skip
        self._check_used(recipe, guidance)
        return recipe

    def _define(self, source: Located, file: RecipeFile, above: Sequence[Path]) -> None:
        """Take in the models and steps of a file and of the files that it includes."""
        for i, name in enumerate(file.include):
            at = source.position(("include", i))
            inner, inner_file = self._open(Path(source.file).parent / name, at, above)
            more = inner_file.model_fields_set - {"fluxsmith", "include", "models", "steps"}
            if more:
                raise RecipeError(
                    "recipe.not-included",
                    f"{inner.file} has `{sorted(more)[0]}`, which is not taken from an included file",
                    at=at,
                    fix=f"include files of models and steps; a whole recipe stands for a model: `NAME: {{recipe: {name}}}`",
                )
            self._define(inner, inner_file, [*above, Path(inner.file).resolve()])
        for kind, known in (("models", self._models), ("steps", self._steps)):
            for name, entry in getattr(file, kind).items():
                if name in self._models or name in self._steps:
                    raise RecipeError(
                        "recipe.duplicate-name", f"`{name}` is defined twice", at=source.position((kind, name)), fix="rename one of them"
                    )
                known[name] = (source, entry)

    def _open(self, path: Path, at: Position | None, above: Sequence[Path]) -> Source:
        self._check_file(path, at, above)
        return self._read(path)

    def _check_file(self, path: Path, at: Position | None, above: Sequence[Path]) -> None:
        if path.resolve() in above:
            chain = " -> ".join(str(p.name) for p in (*above, path))
            raise RecipeError("recipe.cycle", f"{path} uses itself: {chain}", at=at)
        if not path.is_file():
            raise RecipeError("recipe.no-file", f"{path} does not exist", at=at, fix="paths are relative to the file that names them")

    def _model(self, name: str, replaced: str | None) -> Expression:
        source, entry = self._models[name]
        at = source.position(("models", name))
        fields = entry if isinstance(entry, ModelEntry) else ModelEntry(checkpoint=entry)
        if sum(kind is not None for kind in (fields.checkpoint, fields.recipe, fields.adapter)) != 1:
            text = f"model `{name}` needs a `checkpoint`, an `adapter` or a `recipe`, one of them"
            raise self._error("recipe.bad-value", text, ("models", name))
        self._check_kind(name, fields)
        if fields.recipe is not None and replaced is None:
            return self._nested(name, Path(source.file).parent / fields.recipe, at)
        if fields.adapter is not None:
            return self._adapter(name, fields, replaced, at)
        reference = replaced or fields.checkpoint or ""
        return Model(reference, self._prefix + name, tuple(fields.components), at, fields.holds)

    def _check_kind(self, name: str, fields: ModelEntry) -> None:
        """Fields that only a checkpoint or only an adapter has stand with one."""
        own = {"holds"} if fields.adapter is not None else {"weight", "base", "ignore", "alpha"}
        wrong = sorted(own & fields.model_fields_set)
        if wrong:
            kind = "an adapter" if fields.adapter is not None else "a checkpoint"
            raise self._error("recipe.unknown-key", f"`{wrong[0]}` is no field of {kind}", ("models", name, wrong[0]))

    def _adapter(self, name: str, fields: ModelEntry, replaced: str | None, at: Position | None) -> Adapter:
        where = ("models", name, "weight")
        weight = self._value(fields.weight, where)
        if isinstance(weight, bool) or not isinstance(weight, (int, float, Ramp, Schedule)):
            raise self._error(
                "recipe.bad-value", "the weight of an adapter is a number, or a map from selectors to numbers or ramps", where
            )
        base = self._node(fields.base, ("models", name, "base")) if fields.base is not None else None
        number = float(weight) if isinstance(weight, (int, float)) else weight
        return Adapter(
            replaced or fields.adapter or "",
            self._prefix + name,
            number,
            tuple(fields.components),
            tuple(fields.ignore),
            base,
            fields.alpha,
            at,
        )

    def _nested(self, name: str, path: Path, at: Position | None) -> Expression:
        """The result of another recipe file as a model of this one."""
        prefix = f"{self._prefix}{name}_"
        self._check_file(path, at, self._above)
        foreign = self._foreign(path, prefix)
        if foreign is not None:
            return foreign.root
        source, file = self._read(path)
        inner = Builder(source, file, self._read, self._foreign, prefix=prefix, above=self._above).recipe({})
        said = (inner.rules, inner.guidance, inner.rest, inner.components, inner.missing != "error")
        if any(said) or inner.structural != self._file.structural:
            raise RecipeError(
                "recipe.not-in-a-step",
                f"{path} has rules, a rest or a policy for guidance or missing tensors, which are said of the outermost merge",
                at=at,
                fix="say them here, and leave them out there",
            )
        return inner.root

    def _output(self) -> OutputOptions:
        output = self._file.output
        dtype = output_type(output.dtype) if output.dtype else None
        try:
            size = None if output.shard_size is None else parse_size(str(output.shard_size))
        except UsageError as error:
            raise self._error("recipe.bad-value", error.message, ("output", "shard_size"), error.fix) from None
        selectors = (Selector(text, self._position(("output", "unquantised"))) for text in output.unquantised)
        return OutputOptions(output.layout, dtype, size, tuple(selectors))

    def _guidance(self, text: str | None) -> Guidance | None:
        if text is None:
            return None
        guidance: Guidance = self._placed(lambda: Guidance.parse(text), ("merge", "guidance"))
        if guidance.policy == "from":
            self._node(guidance.model, ("merge", "guidance"))
        return guidance

    def _rest(self, names: str | list[str] | None) -> tuple[Model, ...]:
        """The models whose rest is copied."""
        found: list[Model] = []
        for i, name in enumerate([names] if isinstance(names, str) else names or []):
            where = ("merge", "rest", *((i,) if isinstance(names, list) else ()))
            node = self._node(name, where)
            if not isinstance(node, Model):
                raise self._error("recipe.bad-rest", f"`{name}` is made by a recipe: only what a file stores can be copied", where)
            found.append(node)
        return tuple(found)

    def _node(self, name: str, where: Where) -> Expression:
        """A model or step by name; steps are built when they are first used."""
        if name in self._nodes:
            return self._nodes[name]
        known = [*self._models, *self._steps]
        if name not in known:
            raise self._error("recipe.unknown-name", f"`{name}` is no model or step of this recipe", where, did_you_mean(name, known))
        kind = "models" if name in self._models else "steps"
        if name in self._building:
            raise self._error("recipe.cycle", f"step `{name}` uses itself: {' -> '.join([*self._building, name])}", (kind, name))
        self._building.append(name)
        self._nodes[name] = self._model(name, self._replaced.get(name)) if kind == "models" else self._named_step(name)
        self._building.pop()
        return self._nodes[name]

    def _named_step(self, name: str) -> Expression:
        _, step = self._steps[name]
        for field in ("rules", "guidance", "missing", "components", "rest"):
            if isinstance(step, StepEntry) and field in step.model_fields_set:
                raise self._error("recipe.not-in-a-step", f"`{field}` is said of the merge, not of a step", ("steps", name, field))
        return self._step(StepEntry(formula=step) if isinstance(step, str) else step, ("steps", name))

    def _step(self, step: StepEntry | RuleEntry, where: Where) -> Expression:
        if step.formula is not None:
            return self._formula(step, where)
        if isinstance(step, StepEntry) and step.literal is not None:
            return literal(self._value(step.literal, (*where, "literal")))
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
            if key in options:
                raise self._error("recipe.no-weights", f"`{key}` is given twice: here and with the inputs", (*where, key))
            value = self._option_value(given, (*where, key))
            options[key] = self._placed(lambda key=key, value=value: check_option(method, key, value, count), (*where, key))
        return self._placed(lambda: call(method, inputs, options), where)

    def _check_options(self, step: StepEntry | RuleEntry, method: Method | None, where: Where) -> None:
        """Every other key of a step must be an option of its method."""
        kind = KINDS[type(step)]
        options = list(method.options) if method else []
        for key in step.model_extra or {}:
            if key not in options:
                hint = did_you_mean(key, [*type(step).model_fields, *options])
                what = f"no field of {kind} and no option of {method.name}" if method else f"no field of {kind}"
                raise self._error("recipe.unknown-key", f"`{key}` is {what}", (*where, key), hint)

    def _formula(self, step: StepEntry | RuleEntry, where: Where) -> Expression:
        if step.method or step.base or step.inputs or step.model_extra:
            raise self._error("recipe.formula-and-method", "a step has a formula or a method, not both", where)
        names = _Names(lambda name: self._node(name, where), [*self._models, *self._steps])
        try:
            return parse_formula(str(step.formula), names, _FORMULA, "add it to `models`")
        except RecipeError as error:
            if error.at is not None and error.at.file == _FORMULA:
                error.at = self._in_file(error.at, (*where, "formula"))
            raise

    def _in_file(self, at: Position, where: Where) -> Position | None:
        """A place in a formula as a place in the file that it stands in."""
        key = self._position(where)
        start = key.text.find(at.text, key.column) if key else -1
        return replace(key, column=start + at.column, width=at.width) if key and start >= 0 else key

    def _inputs(self, method: Method, step: StepEntry | RuleEntry, where: Where) -> tuple[list[Expression], dict[str, Any]]:
        nodes: list[Expression] = []
        if step.base is not None:
            nodes.append(self._node(step.base, (*where, "base")))
        elif method.inputs[0].name == "base":
            raise self._error("recipe.no-base", f"{method.name} needs a `base`", where)
        entries = [InputEntry(model=entry) if isinstance(entry, str) else entry for entry in step.inputs or []]
        for i, entry in enumerate(entries):
            nodes.append(self._node(entry.model, (*where, "inputs", i)))
            self._check_input(method, entry, (*where, "inputs", i))
        return nodes, self._per_input(method, entries, where)

    def _check_input(self, method: Method, entry: InputEntry, where: Where) -> None:
        """What an input says beside its model must be something that the method has per input."""
        if "weight" in entry.model_fields_set and _WEIGHTS not in method.options:
            raise self._error("recipe.no-weights", f"{method.name} has no weights per input", (*where, "weight"))
        for key in entry.model_extra or {}:
            option = method.options.get(key)
            if option is None or not option.per_input:
                names = ["model", "weight", *(name for name, o in method.options.items() if o.per_input)]
                hint = did_you_mean(key, names)
                what = f"has no `{key}` per input" if option else f"has no option `{key}`"
                kind = f"`{key}` is not a field of a merge input: {method.name} {what}"
                raise self._error("recipe.unknown-key", kind, (*where, key), hint)

    def _per_input(self, method: Method, entries: Sequence[InputEntry], where: Where) -> dict[str, Any]:
        """The options that are said input by input, as lists; an input that says nothing has the method's default."""
        named = {key for entry in entries for key in entry.model_extra or {}}
        if any("weight" in entry.model_fields_set for entry in entries):
            named.add(_WEIGHTS)
        options: dict[str, Any] = {}
        for name in (key for key in method.options if key in named):
            default = method.options[name].default
            key = "weight" if name == _WEIGHTS else name
            values: list[Any] = []
            for i, entry in enumerate(entries):
                place = (*where, "inputs", i, key)
                given = entry.weight if name == _WEIGHTS else (entry.model_extra or {}).get(name, default)
                value = self._option_value(given, place)
                self._placed(lambda name=name, value=value: check_option(method, name, [value], 1), place)
                values.append(value)
            options[name] = values
        return options

    def _option_value(self, value: Any, where: Where) -> Any:
        """The value of an option: a number, word, schedule, list, or a node where it says `{model: NAME}`."""
        if isinstance(value, list):
            return [self._option_value(v, (*where, i)) for i, v in enumerate(cast("list[Any]", value))]
        if isinstance(value, dict) and set(cast("dict[str, Any]", value)) == {"model"}:
            return self._node(str(cast("dict[str, Any]", value)["model"]), (*where, "model"))
        return self._value(value, where)

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
                entries.append((Selector(key, self._position((*where, key))), number))
        return Schedule(default, tuple(entries), self._position(where))

    def _ramp(self, points: Any, where: Where) -> Ramp:
        if not isinstance(points, list) or not all(type(p) in (int, float) for p in cast("list[Any]", points)):
            raise self._error("recipe.bad-ramp", "a ramp is a list of numbers", where)
        numbers = tuple(float(p) for p in cast("list[float]", points))
        self._placed(lambda: check_points(numbers), where)
        return Ramp(numbers)

    def _rule(self, rule: RuleEntry, where: Where) -> Rule:
        selector = Selector(rule.match, self._position((*where, "match")))
        if rule.take is not None:
            if rule.method or rule.formula or rule.base or rule.inputs:
                raise self._error("recipe.take-and-method", "a rule takes from a model or has a method, not both", where)
            self._check_options(rule, None, where)
            return Rule(selector, self._node(rule.take, (*where, "take")))
        return Rule(selector, self._step(rule, where))

    def _check_used(self, recipe: Recipe, guidance: Guidance | None) -> None:
        """Every model and step of this file is used; those of included files may be there for others."""
        used = {m.name.removeprefix(self._prefix) for m in (*recipe.models(), *recipe.adapters())} | (
            {guidance.model} if guidance else set()
        )
        nested = {name for name, node in self._nodes.items() if name in self._models and not isinstance(node, (Model, Adapter))}
        reached = {id(node) for root in (recipe.root, *(rule.expression for rule in recipe.rules)) for node in walk(root)}
        for name in self._file.steps:
            if name not in self._nodes:
                raise self._error("recipe.unused-step", f"step `{name}` is not used", ("steps", name))
        for name in self._file.models:
            if name not in used and not (name in nested and id(self._nodes[name]) in reached):
                raise self._error("recipe.unused-model", f"model `{name}` is not used", ("models", name))

    def _position(self, where: Where) -> Position | None:
        """Where something stands; models and steps may be those of an included file."""
        known: Mapping[str, tuple[Located, Any]] = {"models": self._models, "steps": self._steps}.get(str(where[0]), {})
        source = known[str(where[1])][0] if len(where) > 1 and str(where[1]) in known else self._source
        return source.position(where)

    def _placed(self, build: Any, where: Where) -> Any:
        """Run `build`; an error without a position gets the one of `where`."""
        try:
            return build()
        except RecipeError as error:
            error.at = error.at or self._position(where)
            raise

    def _error(self, code: str, message: str, where: Where, hint: str | None = None) -> RecipeError:
        return RecipeError(code, message, at=self._position(where), hint=hint)


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
