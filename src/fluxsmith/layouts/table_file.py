"""A family's table as a YAML file: what `fluxsmith layout learn` writes and people correct; strictly checked.

    fluxsmith-table: 1
    family: my_encoder
    components: {model: ''}                        # name: what stands before its keys
    blocks: {layer: encoder.layer}                 # symbol: what stands before the number, prefix included
    dims: {d384: 384, d1536: 1536}                 # symbols of sizes, and what they were in the file it was learnt from
    tensors:
      - {name: 'encoder.layer.{layer}.output.dense.weight', shape: [d384, d1536]}

Sizes that have one symbol must be equal in a file; numbers are taken as they are. The one layout of such a family is
called `original`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError

from fluxsmith.config import Strict
from fluxsmith.errors import IncompatibleError, did_you_mean
from fluxsmith.io.located import Located, Writing, read_yaml
from fluxsmith.layouts.table import ORIGINAL, Row, Table

if TYPE_CHECKING:
    from fluxsmith.errors import Position

__all__ = ["TableFile", "TensorEntry", "read_table", "table_of_file", "to_yaml"]

_FIX = "fluxsmith layout learn FILE -o TABLE writes one"
_KIND = Writing("table", IncompatibleError, f"give a table; {_FIX}", f"correct that; {_FIX}")


class TensorEntry(Strict):
    """One tensor, or one for every block where its name has `{symbol}`."""

    name: str = Field(description="the key after its component's prefix")
    shape: list[int | str] = Field(description="numbers, or symbols of `dims`")
    component: str | None = Field(default=None, description="where there are several")
    block: str | None = Field(default=None, description="such as `layer.0`, for a tensor that only some blocks have")


class TableFile(Strict):
    """A family's table."""

    fluxsmith_table: Literal[1] = Field(alias="fluxsmith-table", description="version of this format")
    family: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    components: dict[str, str] = Field(min_length=1)
    blocks: dict[str, str] = Field(default={}, description="symbol: what stands before the number, with the prefix")
    dims: dict[str, int] = Field(default={}, description="symbols of sizes, and what they were in one file")
    tensors: list[TensorEntry] = Field(min_length=1)
    marks: list[str] = Field(default=[], description="whole keys that are no weights: copied from the first input")


def read_table(path: Path) -> Table:
    """The table of a YAML file.

    Raises IncompatibleError with file, line and column where it cannot be read, has an unknown key, or names a symbol
    or component that it does not declare.
    """
    source = read_yaml(path, _KIND)
    try:
        file = TableFile.model_validate(source.data)
    except ValidationError as error:
        raise _invalid(source, error) from None
    _check_words(source, file)
    return table_of_file(file)


def table_of_file(file: TableFile) -> Table:
    """The table that a file describes."""
    several = len(file.components) > 1
    rows = tuple(_row(file, entry, several) for entry in file.tensors)
    return Table(
        family=file.family,
        layouts=(ORIGINAL,),
        rows=rows,
        depth_stems={symbol: {ORIGINAL: stem} for symbol, stem in file.blocks.items()},
        prefixes={name: {ORIGINAL: (prefix,)} for name, prefix in file.components.items()},
        marks=tuple(file.marks),
    )


def _row(file: TableFile, entry: TensorEntry, several: bool) -> Row:
    component = entry.component or next(iter(file.components))
    sizes = tuple(str(size) for size in entry.shape)
    stem = _escaped(f"{component}.{entry.name}" if several else entry.name, file.blocks)
    return Row(
        stem, ("",), sizes[:1], sizes[1:2] or None, {ORIGINAL: (_escaped(file.components[component] + entry.name, file.blocks),)},
        kernel=sizes[2:], block=entry.block, component=component,
    )  # fmt: skip


def _escaped(name: str, symbols: Mapping[str, str]) -> str:
    """A name for `str.format`: braces that are no symbol of a block list stay as they are."""
    text = name.replace("{", "{{").replace("}", "}}")
    for symbol in symbols:
        text = text.replace(f"{{{{{symbol}}}}}", f"{{{symbol}}}")
    return text


def _check_words(source: Located, file: TableFile) -> None:
    """Every symbol and component must be declared, and every declared component must have a tensor."""
    for i, entry in enumerate(file.tensors):
        for size in entry.shape:
            if isinstance(size, str) and size not in file.dims:
                raise _unknown(source, ("tensors", i, "shape"), "size", size, list(file.dims))
        if entry.component is not None and entry.component not in file.components:
            raise _unknown(source, ("tensors", i, "component"), "component", entry.component, list(file.components))
    used = {entry.component or next(iter(file.components)) for entry in file.tensors}
    for name in file.components:
        if name not in used:
            at = source.position(("components", name))
            raise IncompatibleError("table.empty-component", f"no tensor belongs to `{name}`", at=at, fix="leave it out")


def _unknown(source: Located, where: Sequence[str | int], what: str, word: str, known: list[str]) -> IncompatibleError:
    return IncompatibleError(
        f"table.unknown-{what}", f"`{word}` is no {what} that this table declares",
        at=source.position(where), hint=did_you_mean(word, known), fix=f"add it to `{'dims' if what == 'size' else 'components'}`",
    )  # fmt: skip


def _invalid(source: Located, error: ValidationError) -> IncompatibleError:
    """The deepest complaint of the validator, at its place."""
    problems = error.errors(include_url=False)
    deepest = max(problems, key=lambda p: (len(source.within(p["loc"])), p["type"] == "extra_forbidden"))
    where = source.within(deepest["loc"])
    at: Position | None = source.position(where)
    if deepest["type"] == "extra_forbidden":
        kind = TensorEntry if where and where[0] == "tensors" else TableFile
        known = [field.alias or name for name, field in kind.model_fields.items()]
        key = str(deepest["loc"][-1])
        return IncompatibleError("table.unknown-key", f"`{key}` is not a field of a table", at=at, hint=did_you_mean(key, known), fix=_FIX)
    name = ".".join(map(str, deepest["loc"]))
    what = "is missing" if deepest["type"] == "missing" else deepest["msg"][0].lower() + deepest["msg"][1:]
    return IncompatibleError("table.bad-value", f"`{name}`: {what}", at=at, facts={"file": source.file}, fix=_FIX)


def to_yaml(file: TableFile, about: str) -> str:
    """The file as text, one line per tensor; `about` says in a comment where it comes from."""
    import json

    def words(mapping: Mapping[str, object]) -> str:
        return "{" + ", ".join(f"{key}: {json.dumps(value)}" for key, value in mapping.items()) + "}"

    lines = [f"# {about}", "fluxsmith-table: 1", f"family: {file.family}", f"components: {words(file.components)}"]
    lines += [f"blocks: {words(file.blocks)}", f"dims: {words(file.dims)}"]
    lines += [f"marks: {json.dumps(file.marks)}"] if file.marks else []
    lines.append("tensors:")
    for entry in file.tensors:
        shape = ", ".join(map(str, entry.shape))
        more = "".join(f", {key}: {value}" for key, value in (("component", entry.component), ("block", entry.block)) if value)
        lines.append(f"  - {{name: {json.dumps(entry.name)}, shape: [{shape}]{more}}}")
    return "\n".join(lines) + "\n"
