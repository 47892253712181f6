"""YAML that remembers where everything stands, so that errors point at file, line and column."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fluxsmith.errors import IncompatibleError, Position, RecipeError

__all__ = ["RECIPE", "Located", "Writing", "parse_documents", "parse_yaml", "read_text", "read_yaml"]

Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class Writing:
    """A kind of file that people write, for the errors about it: what codes begin with, their class, how one is mended."""

    area: str
    error: type[IncompatibleError]
    not_text: str
    not_yaml: str


RECIPE = Writing(
    "recipe", RecipeError, "give a recipe file; a checkpoint is named with -m NAME=FILE",
    "correct that; `fluxsmith new recipe` writes one to start from",
)  # fmt: skip


class Located:
    """Plain data (dict, list, str, numbers) of a YAML file, with the place of every key and value."""

    def __init__(self, data: Any, file: str, lines: Sequence[str], places: Mapping[Path_, tuple[int, int]]) -> None:
        self.data, self.file = data, file
        self._lines, self._places = lines, places

    def position(self, path: Sequence[str | int], width: int | None = None) -> Position | None:
        """Where the value (or key) at `path` stands; the nearest outer one where it has no place of its own."""
        for length in range(len(path), 0, -1):
            place = self._places.get(tuple(path[:length]))
            if place is not None:
                line, column = place
                text = self._lines[line] if line < len(self._lines) else ""
                word = str(path[length - 1])
                return Position(self.file, line + 1, column + 1, text, width or max(len(word), 1))
        return None

    def within(self, location: Sequence[Any]) -> list[str | int]:
        """The part of a validator's location that exists in the data (it also names branches of unions)."""
        found: list[str | int] = []
        here = self.data
        for part in location:
            if isinstance(here, dict) and part in here:
                here = cast("dict[str, Any]", here)[part]
            elif isinstance(here, list) and isinstance(part, int) and part < len(cast("list[Any]", here)):
                here = cast("list[Any]", here)[part]
            else:
                continue
            found.append(part)
        return found

    def assign(self, key: str, text: str) -> None:
        """Set `a.b.c` to a YAML value, as `--set a.b.c=value` does.

        Raises RecipeError where the path leads through something that has no fields, or the value is not YAML.
        """
        here: Any = self.data
        *parents, last = key.split(".")
        for part in parents:
            here = _child(here, part, key)
        value = parse_yaml(text, f"--set {key}").data
        if isinstance(here, list):
            cast("list[Any]", here)[_index(here, last, key)] = value
        elif isinstance(here, dict):
            here[last] = value
        else:
            raise _no_field(key, last)


def read_yaml(path: Path, kind: Writing = RECIPE) -> Located:
    """A YAML file with positions.

    Raises the error of its kind with file, line and column where it cannot be read or names a key twice.
    """
    return parse_yaml(read_text(path, kind), str(path), kind)


def read_text(path: Path, kind: Writing = RECIPE) -> str:
    """The text of a file; raises the error of its kind where it is none."""
    try:
        return path.read_text()
    except UnicodeDecodeError:
        raise kind.error(f"{kind.area}.not-text", f"{path} is not a text file", facts={"file": path}, fix=kind.not_text) from None


def parse_yaml(text: str, file: str, kind: Writing = RECIPE) -> Located:
    """The same for text that stands elsewhere, such as in the metadata of a file."""
    return _located(text, file, lambda: [_yaml().load(text)], kind)[0]


def parse_documents(text: str, file: str) -> list[Located]:
    """The same for a text of several documents with `---` between them."""
    return _located(text, file, lambda: list(_yaml().load_all(text)), RECIPE)


def _located(text: str, file: str, read: Callable[[], list[Any]], kind: Writing) -> list[Located]:
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    lines = text.splitlines()
    try:
        documents = read()
    except MarkedYAMLError as error:
        mark = error.problem_mark
        at = Position(file, mark.line + 1, mark.column + 1, lines[mark.line] if mark.line < len(lines) else "") if mark else None
        code = "duplicate-key" if "duplicate key" in str(error) else "bad-yaml"
        problem = (error.problem or "not YAML").split("\n")[0]
        raise kind.error(f"{kind.area}.{code}", problem, at=at, facts={} if at else {"file": file}) from None
    except (YAMLError, ValueError, RecursionError) as error:  # control characters; values that their type cannot hold; endless nesting
        facts = {"file": file, "cause": str(error).split("\n")[0]}
        raise kind.error(f"{kind.area}.bad-yaml", f"{file} is not YAML", facts=facts, fix=kind.not_yaml) from None
    found: list[Located] = []
    for data in documents:
        places: dict[Path_, tuple[int, int]] = {}
        _collect(data, (), places)
        found.append(Located(_plain(data), file, lines, places))
    return found


def _yaml() -> Any:
    from ruamel.yaml import YAML

    return YAML(typ="rt")


def _collect(node: Any, path: Path_, places: dict[Path_, tuple[int, int]]) -> None:
    if isinstance(node, dict):
        for key, value in cast("dict[Any, Any]", node).items():
            with suppress(KeyError):  # keys that `<<` merges in stand elsewhere
                places[(*path, str(key))] = node.lc.key(key)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
            _collect(value, (*path, str(key)), places)
    elif isinstance(node, list):
        for i, value in enumerate(cast("list[Any]", node)):
            places[(*path, i)] = node.lc.item(i)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
            _collect(value, (*path, i), places)


def _plain(node: Any) -> Any:
    """The same data without the YAML library's own types."""
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in cast("dict[Any, Any]", node).items()}
    if isinstance(node, list):
        return [_plain(value) for value in cast("list[Any]", node)]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _child(here: Any, part: str, key: str) -> Any:
    if isinstance(here, dict):
        return cast("dict[str, Any]", here).setdefault(part, {})
    if isinstance(here, list):
        return cast("list[Any]", here)[_index(cast("list[Any]", here), part, key)]
    raise _no_field(key, part)


def _index(here: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(here):
        raise _no_field(key, part)
    return int(part)


def _no_field(key: str, part: str) -> RecipeError:
    return RecipeError("recipe.bad-set", f"--set {key}: there is no `{part}` to set", fix="--set merge.density=0.4")
