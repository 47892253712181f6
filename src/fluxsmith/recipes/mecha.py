"""sd-mecha's `.mecha` files, version 0.1.0, read as they are.

    version 0.1.0
    model "dev.safetensors" model_config="flux-flux" merge_space="weight"
    model "krea.safetensors" model_config="flux-flux" merge_space="weight"
    dict key=0.5
    literal &2 model_config="singleton-mecha" merge_space="param"
    merge "convert_singleton" &3
    merge "weighted_sum" &0 &1 &4

Every line is a value, `&N` is that of line N (from 0, without the version and comments), the last one is the result.
Blank lines and a line break at the end are accepted here. A key that one of the inputs lacks is an error, where sd-mecha
drops it; `fallback` and rules mend it. Tensors keep the type of the inputs, where sd-mecha writes fp16.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from fluxsmith.errors import Position, RecipeError, UsageError, did_you_mean
from fluxsmith.io.dtypes import DTYPES, dtype_from_name
from fluxsmith.methods import find_method
from fluxsmith.recipes.calls import call
from fluxsmith.recipes.expressions import Adapter, Expression, Literal, Model, adapter, model
from fluxsmith.recipes.mecha_methods import METHODS, REFUSED
from fluxsmith.recipes.recipe import OutputOptions, Recipe
from fluxsmith.recipes.schedules import Schedule
from fluxsmith.recipes.selectors import Selector

__all__ = ["VERSION", "is_mecha", "recipe_from_mecha"]

VERSION = "version 0.1.0"
_PREFIX = "model.diffusion_model."
_TOKEN = re.compile(r'\s*(?:([^\s"=]+)=)?(?:"((?:[^"\\]|\\.)*)"|([^\s"]+))(?=\s|$)')
_ADAPTERS = ("_kohya_lora", "_lycoris_lora")
_CONFIGS = (
    "flux-flux", "sd1-kohya", "sd1-ldm", "sd1-supermerger_blocks", "sd3-comfyui", "sdxl-diffusers_unet_only", "sdxl-kohya",
    "sdxl-kohya_but_diffusers", "sdxl-sgm", "sdxl-supermerger_blocks", "singleton-mecha", "structural",
)  # fmt: skip
_BLOCK_CONVERSIONS = ("convert_sdxl_blocks_to_sgm", "convert_sd1_blocks_to_ldm")
_SPACES = ("weight", "delta", "param")
_CONSTANTS: dict[str, object] = {"null": None, "true": True, "false": False}


def is_mecha(text: str) -> bool:
    """Whether a text begins as a `.mecha` file does."""
    return re.match(r"version\s+\d", text) is not None


def recipe_from_mecha(text: str, file: str, models: Mapping[str, str], prefix: str = "") -> Recipe:
    """The recipe of a `.mecha` text; `models` replaces references by name (the stem of the file, after `prefix`).

    Raises RecipeError with line and column.
    """
    return _Reader(text, file, models, prefix).recipe()


@dataclass(frozen=True)
class _Token:
    """One word of a line: its value, the key before `=`, and where it stands (from 1)."""

    value: Any
    key: str | None
    column: int
    width: int
    quoted: bool


@dataclass(frozen=True)
class _Entries:
    """A `dict` line, or the `literal` made of it: values per key, of the names that `config` knows."""

    values: Mapping[str, Any]
    config: str | None = None


@dataclass(frozen=True)
class _Cast:
    """A node whose type was changed: what is written if it is the result, else values rounded on the way."""

    node: Expression
    dtype: str


class _Reader:
    def __init__(self, text: str, file: str, replaced: Mapping[str, str], prefix: str) -> None:
        self._lines, self._file, self._replaced, self._prefix = text.splitlines(), file, replaced, prefix
        self._line = self._seed = 0
        self._results: list[Any] = []
        self._models: dict[tuple[str, str], Model | Adapter] = {}

    def recipe(self) -> Recipe:
        if not self._lines or self._lines[0].strip() != VERSION:
            at = Position(self._file, 1, 1, self._lines[0] if self._lines else "", max(len(self._lines[0]) if self._lines else 1, 1))
            raise RecipeError("recipe.mecha-version", f"the first line of a .mecha file is `{VERSION}`", at=at)
        for number, line in enumerate(self._lines[1:], start=1):
            self._line = number
            if line.strip() and not line.lstrip().startswith("#"):
                self._results.append(self._read(self._tokens(line)))
        root = self._results[-1] if self._results else None
        dtype = dtype_from_name(root.dtype).name if isinstance(root, _Cast) else None
        root = root.node if isinstance(root, _Cast) else root
        if not isinstance(root, Expression):
            raise self._error("recipe.no-models", "the last line is the result: a model or a merge, not a number")
        unknown = [name for name in self._replaced if name not in {node.name for node in self._models.values()}]
        if unknown:
            names = ", ".join(node.name for node in self._models.values())
            raise UsageError("usage.unknown-model", f"the recipe has no model `{unknown[0]}`", facts={"models": names})
        used = {node.name for node in (*root.models(), *root.adapters())}
        for node in self._models.values():
            if node.name not in used:
                raise RecipeError("recipe.unused-model", f"model `{node.name}` is not used", at=node.at)
        return Recipe(root, output=OutputOptions(dtype=dtype), seed=self._seed)

    def _tokens(self, line: str) -> list[_Token]:
        tokens: list[_Token] = []
        place = 0
        while line[place:].strip():
            found = _TOKEN.match(line, place)
            if found is None:
                start = place + len(line[place:]) - len(line[place:].lstrip())
                raise self._error("recipe.bad-mecha", "this cannot be read: a word, or text in quotes", _at(start, len(line) - start))
            key, quoted, bare = found.groups()
            start = found.start(1) if key is not None else (found.start(2) - 1 if quoted is not None else found.start(3))
            at = _at(start, found.end() - start)
            if quoted is not None:
                tokens.append(_Token(re.sub(r"\\(.)", r"\1", quoted), key, *at, quoted=True))
            else:
                value = bare if not tokens and key is None else self._bare(bare, at)
                tokens.append(_Token(value, key, *at, quoted=False))
            place = found.end()
        return tokens

    def _bare(self, word: str, at: tuple[int, int]) -> Any:
        """A reference, number or constant."""
        if word in _CONSTANTS:
            return _CONSTANTS[word]
        if word.startswith("&"):
            number = word[1:]
            if not number.isdigit() or int(number) >= len(self._results):
                last = f"&0 to &{len(self._results) - 1}" if self._results else "none"
                raise self._error("recipe.unknown-name", f"`{word}` is not the value of a line above", at, hint=f"known here: {last}")
            return self._results[int(number)]
        try:
            return float(word) if "." in word or "e" in word.lower() else int(word)
        except ValueError:
            raise self._error("recipe.bad-mecha", f"`{word}` is no number, `&N`, null, true or false", at) from None

    def _read(self, tokens: list[_Token]) -> Any:
        command, *arguments = tokens
        if command.value == "dict":
            for token in arguments:
                if token.key is None:
                    raise self._error("recipe.bad-mecha", "a dict has entries KEY=VALUE", token)
            return _Entries({str(token.key): token.value for token in arguments})
        kinds = {"model": self._model, "literal": self._literal, "merge": self._merge}
        if command.value not in kinds or command.quoted or command.key is not None:
            hint = did_you_mean(str(command.value), [*kinds, "dict"])
            raise self._error("recipe.bad-mecha", "a line begins with dict, literal, model or merge", command, hint=hint)
        if not arguments or arguments[0].key is not None:
            raise self._error("recipe.wrong-arity", f"`{command.value}` needs a value", command)
        return kinds[command.value](arguments[0], arguments[1:])

    def _model(self, path: _Token, rest: list[_Token]) -> Model | Adapter:
        if not isinstance(path.value, str):
            raise self._error("recipe.bad-mecha", "a model is a path in quotes", path)
        options = self._typed(rest)
        networks = str(options.get("model_config")).endswith(_ADAPTERS)  # LyCORIS: its `merge_space` is that of the factors
        space = options.get("merge_space") or "weight"
        key = (path.value, "adapter" if networks else space)
        if key not in self._models:
            found = adapter(path.value) if networks else model(path.value, holds=space)
            taken, stem = {node.name for node in self._models.values()}, self._prefix + found.name
            name = next(n for i in range(1, len(taken) + 2) if (n := stem if i == 1 else f"{stem}_{i}") not in taken)
            at = self._position(path)
            self._models[key] = replace(found, name=name, reference=self._replaced.get(name, path.value), at=at)
        return self._models[key]

    def _typed(self, rest: list[_Token]) -> dict[str, Any]:
        """model_config and merge_space, by name or in this order; both are checked."""
        options: dict[str, Any] = {}
        for i, token in enumerate(rest):
            key = token.key or (["model_config", "merge_space"][i] if i < 2 else None)
            if key not in ("model_config", "merge_space"):
                raise self._error("recipe.bad-mecha", f"`{key or token.value}` is no option of this line", token)
            known = _CONFIGS if key == "model_config" else _SPACES
            network = key == "model_config" and str(token.value).endswith(_ADAPTERS)
            if token.value is not None and token.value not in known and not network:
                hint = did_you_mean(str(token.value), known)
                raise self._error("recipe.mecha-option", f"`{token.value}` is no {key.replace('_', ' ')}", token, hint=hint)
            options[key] = token.value
        return options

    def _literal(self, value: _Token, rest: list[_Token]) -> Any:
        options = self._typed(rest)
        if isinstance(value.value, _Entries):
            return _Entries(value.value.values, options.get("model_config"))
        return value.value

    def _merge(self, name: _Token, arguments: list[_Token]) -> Any:
        method = name.value
        if isinstance(method, str) and method.startswith("convert_") and len(arguments) == 1:
            return self._converted(method, name, arguments[0])
        if method == "cast":
            return self._cast(name, arguments)
        if method in REFUSED:
            raise self._error("recipe.mecha-method", f"{method} of sd-mecha has no meaning here", name, fix=REFUSED[method])
        if method not in METHODS:
            hint = did_you_mean(str(method), METHODS)
            raise self._error("recipe.unknown-method", f"`{method}` is not a method of sd-mecha that is known here", name, hint=hint)
        builder = METHODS[method]
        positional = [self._value(token) for token in arguments if token.key is None]
        named = {token.key: self._value(token) for token in arguments if token.key is not None}
        self._check_arguments(name, inspect.signature(builder), positional, arguments)
        if isinstance(named.get("seed"), int):
            self._seed = max(named["seed"], 0)
        try:
            return builder(*positional, **named)
        except RecipeError as error:
            error.at = error.at or self._position(name)
            raise

    def _check_arguments(self, name: _Token, signature: inspect.Signature, positional: list[Any], arguments: list[_Token]) -> None:
        """Number and names of arguments, and models where models belong."""
        parameters = list(signature.parameters.values())
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        named = [token.key for token in arguments if token.key is not None]
        names = ", ".join(("*" if p.kind is p.VAR_POSITIONAL else "") + p.name for p in parameters)
        for token in arguments:
            if token.key is not None and token.key not in signature.parameters:
                hint = did_you_mean(token.key, list(signature.parameters))
                raise self._error("recipe.unknown-option", f"{name.value} has no argument `{token.key}`", token, hint=hint)
        missing = [p.name for p in by_place[len(positional) :] if p.default is p.empty and p.name not in named]
        if missing or (len(positional) > len(by_place) and not variadic) or (variadic and not positional):
            message = f"{name.value} takes ({names}), {len(positional)} values are given by place"
            raise self._error("recipe.wrong-arity", message, name)
        places = [p.annotation for p in by_place] + [Expression] * (len(positional) - len(by_place))
        for token, wanted in zip((t for t in arguments if t.key is None), places, strict=False):
            if wanted is Expression and not isinstance(token.value, (Expression, _Cast)):
                raise self._error("recipe.wrong-space", f"{name.value} takes a model here, not `{_shown(token.value)}`", token)

    def _value(self, token: _Token) -> Any:
        """A value as a method takes it: numbers per key are a schedule."""
        if isinstance(token.value, _Cast):
            return self._rounded(token.value, token)
        if isinstance(token.value, float) and not abs(token.value) < float("inf"):
            raise self._error("recipe.bad-value", f"`{token.value}` is no finite number", token)
        if isinstance(token.value, _Entries):
            return self._schedule(token.value, token)
        return token.value

    def _rounded(self, value: _Cast, token: _Token) -> Expression:
        """A node rounded to a type in the middle of a recipe."""
        method = find_method("cast")
        word = DTYPES[dtype_from_name(value.dtype).name].short
        try:
            return call(method, [value.node], {"dtype": word})
        except RecipeError as error:
            error.at = self._position(token)
            raise

    def _schedule(self, entries: _Entries, token: _Token) -> Schedule:
        at = self._position(token)
        for key, value in entries.values.items():
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < float("inf"):
                raise self._error(
                    "recipe.bad-value", f"`{key}` is `{_shown(value)}`: per key only finite numbers have a meaning here", token
                )
        selected = ((Selector(key.removeprefix(_PREFIX), at), float(value)) for key, value in entries.values.items())
        return Schedule(None, tuple(selected), at)

    def _converted(self, method: str, name: _Token, argument: _Token) -> Any:
        """Conversions: numbers for all keys or per block; layouts of files, which are views here."""
        value = argument.value
        if method == "convert_singleton":
            if not isinstance(value, _Entries) or set(value.values) != {"key"}:
                raise self._error("recipe.mecha-option", "convert_singleton takes a literal of `dict key=VALUE`", argument)
            return value.values["key"]
        if method in _BLOCK_CONVERSIONS and isinstance(value, _Entries):
            return self._block_schedule(value, argument)
        if method.startswith("convert_'") and isinstance(value, Expression):
            return value
        raise self._error("recipe.unknown-method", f"`{method}` is not a conversion that is known here", name)

    def _block_schedule(self, entries: _Entries, token: _Token) -> Schedule:
        """supermerger's block weights: IN00 to IN11, M00, OUT00 to OUT11, BASE for the rest, VAE."""
        at = self._position(token)
        chosen: list[tuple[Selector, float]] = []
        values = dict(self._schedule(entries, token).entries)
        numbers = {selector.text: cast("float", value) for selector, value in values.items()}
        for key, value in numbers.items():
            block = re.fullmatch(r"(IN|M|OUT)(\d\d)", key)
            if block:
                kind = {"IN": "in", "M": "mid", "OUT": "out"}[block[1]]
                chosen.append((Selector(f"{kind}.{int(block[2])}", at), value))
            elif key == "VAE":
                chosen.append((Selector("vae", at), value))
            elif key != "BASE":
                raise self._error("recipe.mecha-option", f"`{key}` is no block of supermerger's", token)
        return Schedule(numbers.get("BASE"), tuple(chosen), at)

    def _cast(self, name: _Token, arguments: list[_Token]) -> Any:
        order = ("a", "device", "dtype")
        values = {token.key or order[min(i, 2)]: self._value(token) for i, token in enumerate(arguments)}
        if not isinstance(values.get("a"), Expression):
            raise self._error("recipe.wrong-arity", "cast takes (a, device, dtype)", name)
        if values.get("dtype") is None:
            return values["a"]
        try:
            dtype_from_name(str(values["dtype"]))
        except UsageError as error:
            raise self._error("recipe.mecha-option", error.message, name) from None
        return _Cast(values["a"], str(values["dtype"]))

    def _position(self, place: "_Token | tuple[int, int]") -> Position:
        column, width = (place.column, place.width) if isinstance(place, _Token) else place
        return Position(self._file, self._line + 1, column, self._lines[self._line], max(width, 1))

    def _error(
        self, code: str, message: str, place: "_Token | tuple[int, int]" = (1, 1), *, hint: str | None = None, fix: str | None = None
    ) -> RecipeError:
        return RecipeError(code, message, at=self._position(place), hint=hint, fix=fix)


def _at(start: int, width: int) -> tuple[int, int]:
    return start + 1, width


def _shown(value: Any) -> str:
    return "a dict" if isinstance(value, _Entries) else "a model" if isinstance(value, (Expression, Literal)) else str(value)
