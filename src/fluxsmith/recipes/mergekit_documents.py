"""One document of mergekit's YAML, checked for what it may hold, with the place of everything."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from fluxsmith.errors import Position, RecipeError, UsageError, did_you_mean
from fluxsmith.io.dtypes import dtype_from_name
from fluxsmith.io.located import Located
from fluxsmith.recipes.mergekit_methods import FOREIGN_METHODS, ForeignMethod

__all__ = ["Document", "Entry", "Where"]

_FIELDS = ("merge_method", "base_model", "models", "parameters", "dtype", "out_dtype", "name")
#: Keys of mergekit's that concern stacking layers and language models.
_FOREIGN_FIELDS = {
    "slices": "stacking layers makes another architecture, which no FLUX loader knows",
    "modules": "name the components in a recipe of fluxsmith",
    "tokenizer": "image models keep theirs beside the weights",
    "tokenizer_source": "image models keep theirs beside the weights",
    "chat_template": "image models have none",
}
Where = tuple[str | int, ...]


@dataclass(frozen=True)
class Entry:
    """A line of `models`: what it names, its own parameters, and where it stands."""

    reference: str
    parameters: Mapping[str, Any]
    where: Where


class Document:
    """One document, checked for what it may hold."""

    def __init__(self, source: Located) -> None:
        self.source = source
        if not isinstance(source.data, dict):
            raise RecipeError("recipe.bad-value", f"{source.file}: a document of mergekit is a map of keys", facts={"file": source.file})
        self.data = cast("dict[str, Any]", source.data)
        for key in self.data:
            if key in _FOREIGN_FIELDS:
                raise self.error("recipe.mergekit-option", f"`{key}` of mergekit has no meaning here", (key,), fix=_FOREIGN_FIELDS[key])
            if key not in _FIELDS:
                hint = did_you_mean(key, _FIELDS)
                raise self.error("recipe.mergekit-option", f"`{key}` is not a field of mergekit's that is known here", (key,), hint)
        if "merge_method" not in self.data:
            raise self.error("recipe.missing-key", "`merge_method` is missing", tuple(self.data)[:1])

    @property
    def name(self) -> str:
        """mergekit's name of its method."""
        return str(self.data["merge_method"])

    def method(self) -> ForeignMethod:
        if self.name not in FOREIGN_METHODS:
            hint = did_you_mean(self.name, FOREIGN_METHODS)
            fix = f"known here: {', '.join(FOREIGN_METHODS)}"
            raise self.error("recipe.unknown-method", f"`{self.name}` is not a method of mergekit", ("merge_method",), hint, fix)
        return FOREIGN_METHODS[self.name]

    def entries(self) -> list[Entry]:
        """The lines of `models`."""
        lines = self.data.get("models")
        if not isinstance(lines, list) or not lines:
            raise self.error(
                "recipe.no-inputs", "`models` is a list of models", ("models",) if "models" in self.data else ("merge_method",)
            )
        entries: list[Entry] = []
        for i, line in enumerate(cast("list[Any]", lines)):
            where: Where = ("models", i)
            fields = cast("dict[str, Any]", line) if isinstance(line, dict) else {}
            if "model" not in fields:
                raise self.error("recipe.bad-value", "an entry of `models` is a map with `model`", where)
            for key in fields:
                if key not in ("model", "parameters"):
                    hint = did_you_mean(key, ("model", "parameters"))
                    raise self.error(
                        "recipe.mergekit-option", f"`{key}` is not a field of a model in mergekit's files", (*where, key), hint
                    )
            parameters = self._map(fields.get("parameters"), (*where, "parameters"))
            reference = self._reference(fields["model"], (*where, "model"))
            if any(reference == other.reference for other in entries):
                raise self.error("recipe.duplicate-model", f"{reference} is named twice", (*where, "model"))
            entries.append(Entry(reference, parameters, (*where, "model")))
        return entries

    def base(self) -> Entry | None:
        """The base model, where the document has one."""
        if self.data.get("base_model") is None:
            return None
        return Entry(self._reference(self.data["base_model"], ("base_model",)), {}, ("base_model",))

    def references(self) -> list[str]:
        """Everything that the document names."""
        base = self.base()
        return [entry.reference for entry in [*self.entries(), *([base] if base else [])]]

    def parameters(self) -> Mapping[str, Any]:
        """The parameters of the whole merge."""
        return self._map(self.data.get("parameters"), ("parameters",))

    def dtype(self) -> str | None:
        """What is written; None is as the inputs are."""
        key = "out_dtype" if self.data.get("out_dtype") is not None else "dtype"
        word = self.data.get(key)
        return None if word is None else self.placed(lambda: dtype_from_name(str(word)).name, (key,))

    def _map(self, value: Any, where: Where) -> Mapping[str, Any]:
        if value is not None and not isinstance(value, dict):
            raise self.error("recipe.bad-value", "`parameters` is a map", where)
        return cast("dict[str, Any]", value or {})

    def _reference(self, value: Any, where: Where) -> str:
        if not isinstance(value, str):
            raise self.error("recipe.mergekit-option", "a model is named by a path or org/name", where)
        if value.startswith("+") or value.endswith("+"):
            raise self.error("recipe.mergekit-option", f"`{value}` is no model with a LoRA: MODEL+LORA", where)
        return value

    def placed(self, build: Any, where: Where) -> Any:
        """Run `build`; an error without a position gets the one of `where`."""
        try:
            return build()
        except RecipeError as error:
            error.at = error.at or self.position(where)
            raise
        except UsageError as error:
            raise RecipeError("recipe.bad-value", error.message, at=self.position(where), fix=error.fix) from None

    def position(self, where: Where) -> Position | None:
        """Where something stands."""
        return self.source.position(where)

    def error(self, code: str, message: str, where: Where, hint: str | None = None, fix: str | None = None) -> RecipeError:
        return RecipeError(code, message, at=self.position(where), hint=hint, fix=fix)
