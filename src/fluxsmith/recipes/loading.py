"""Recipes from files, texts, presets and formulas, with every complaint at its line."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fluxsmith.adapters.reading.detection import is_local_adapter
from fluxsmith.errors import Position, RecipeError, UsageError, did_you_mean
from fluxsmith.io.located import Located, parse_documents, parse_yaml, read_text, read_yaml
from fluxsmith.recipes.building import KINDS, Builder, Source
from fluxsmith.recipes.expressions import Adapter, Model, adapter, model
from fluxsmith.recipes.formula import parse_formula
from fluxsmith.recipes.mecha import is_mecha, recipe_from_mecha
from fluxsmith.recipes.mergekit import is_mergekit, recipe_from_mergekit
from fluxsmith.recipes.recipe import Recipe
from fluxsmith.recipes.schema import InputEntry, ModelEntry, OutputEntry, RecipeFile, RuleEntry

__all__ = ["load_preset", "load_recipe", "presets", "recipe_from_formula", "recipe_from_text", "with_rest"]


def load_recipe(path: Path, *, models: Mapping[str, str] | None = None, assign: Sequence[str] = ()) -> Recipe:
    """A recipe file: fluxsmith's or mergekit's YAML, or sd-mecha's `.mecha`.

    `models` replaces references by name, `assign` are `a.b=value` changes. Raises RecipeError (exit code 4) with file,
    line and column.
    """
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError("usage.no-recipe", f"{path} {problem}", fix="fluxsmith new recipe -o recipe.yaml")
    foreign = _foreign(path, "", models or {}, assign)
    return foreign if foreign is not None else _build(read_yaml(path), models or {}, assign)


def recipe_from_text(text: str, file: str, *, models: Mapping[str, str] | None = None) -> Recipe:
    """A recipe that stands in the metadata of a file."""
    return _build(parse_yaml(text, file), models or {}, ())


def presets() -> dict[str, Path]:
    """The recipes that ship with the package, by name."""
    folder = Path(__file__).parent / "presets"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


_ADAPTER = "adapter:"  # before a reference that is to be read as an adapter, as one on the Hub cannot be looked at yet


def load_preset(name: str, models: Mapping[str, str], assign: Sequence[str] = ()) -> Recipe:
    """A preset with some of its models replaced; raises UsageError where there is no such preset."""
    known = presets()
    if name not in known:
        raise UsageError(
            "usage.unknown-preset", f"`{name}` is not a preset", hint=did_you_mean(name, list(known)), fix="fluxsmith list presets"
        )
    return load_recipe(known[name], models=models, assign=assign)


def recipe_from_formula(text: str, models: Mapping[str, str], rest: Sequence[str] = ()) -> Recipe:
    """The recipe of a one-line formula over named references, of which those named in `rest` need not stand in the formula."""
    nodes = {name: named_node(name, reference) for name, reference in models.items()}
    root = parse_formula(text, nodes)
    unused = [name for name, node in nodes.items() if node not in (*root.models(), *root.adapters()) and name not in rest]
    if unused:
        raise RecipeError("recipe.unused-model", f"`{unused[0]}` is not used in the formula", fix=f"leave -m {unused[0]}=... out")
    return with_rest(Recipe(root, title=text), rest, nodes)


def with_rest(recipe: Recipe, rest: Sequence[str], nodes: Mapping[str, Model | Adapter]) -> Recipe:
    """The recipe with the rest of some models copied, each named as one of `nodes` or of the recipe, or a reference."""
    known = {node.name: node for node in (*recipe.models(), *nodes.values()) if isinstance(node, Model)}
    return replace(recipe, rest=tuple(known.get(text) or model(text) for text in rest)) if rest else recipe


def named_node(name: str, reference: str) -> Model | Adapter:
    """The node that a reference stands for: an adapter where it is written `adapter:REF`, or a local file that holds one."""
    if reference.startswith(_ADAPTER):
        return adapter(reference.removeprefix(_ADAPTER), name=name)
    return adapter(reference, name=name) if is_local_adapter(reference) else model(reference, name=name)


def _build(source: Located, models: Mapping[str, str], assign: Sequence[str]) -> Recipe:
    _assign(source, assign)
    file = _checked(source)
    if file.merge is None:
        fix = "fluxsmith new recipe shows what a recipe has"
        raise RecipeError("recipe.missing-key", "`merge` is missing", at=source.position(()), facts={"file": source.file}, fix=fix)
    return Builder(source, file, _read, _foreign).recipe(models)


def _assign(source: Located, assign: Sequence[str]) -> None:
    for change in assign:
        key, equals, value = change.partition("=")
        if not equals:
            raise UsageError("usage.bad-set", f"`--set {change}` has no `=`", fix="--set merge.density=0.4")
        source.assign(key, value)


def _foreign(path: Path, prefix: str, models: Mapping[str, str] | None = None, assign: Sequence[str] = ()) -> Recipe | None:
    """The recipe of a file of sd-mecha's or mergekit's, None where it is ours; `prefix` stands before its models' names."""
    text = read_text(path)
    if path.suffix == ".mecha" or is_mecha(text):
        if assign:
            raise UsageError("usage.set-on-mecha", "--set changes YAML; a .mecha file has no fields", fix="edit the file")
        return recipe_from_mecha(text, str(path), models or {}, prefix)
    if is_mergekit(text):
        documents = parse_documents(text, str(path))
        _assign(documents[-1], assign)
        return recipe_from_mergekit(documents, models or {}, prefix)
    return None


def _read(path: Path) -> Source:
    source = read_yaml(path)
    return source, _checked(source)


def _checked(source: Located) -> RecipeFile:
    try:
        return RecipeFile.model_validate(source.data)
    except ValidationError as error:
        raise _validation_error(source, error) from None


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
        return RecipeError("recipe.unknown-key", f"`{key}` is not a field of {KINDS[entry]}", at=source.position(where), hint=hint)
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
