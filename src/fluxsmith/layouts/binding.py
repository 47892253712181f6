"""A checkpoint seen through a layout: every canonical tensor as a view of the file's bytes."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from fluxsmith.errors import IncompatibleError
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.dtypes import DTYPES
from fluxsmith.io.views import View
from fluxsmith.layouts.table import Canonical, Dims, Piece, Row, Table, places, size, stored_shapes

__all__ = ["MARK", "PREFIXES", "Bound", "bind", "namer", "solve_dims", "symbols_of"]

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "model.", "module.", "_orig_mod.", "ema.", "")
SHOWN = 10
#: The tag of tensors that are no weights but say what kind of model a file holds.
MARK = "mark"
_MANY = 1 << 30


@dataclass(frozen=True)
class Bound:
    """A checkpoint in canonical form.

    `spec` has every canonical tensor in table order, `views` its bytes, `extras` the keys of the file that are no part
    of this model (other components of an all-in-one file), `prefix` what stood before every key (of the first
    component), `prefixes` the same for every component that the file has, `dropped` keys that are no weights, each
    with what it is.
    """

    checkpoint: Checkpoint
    family: str
    layout: str
    prefix: str
    dims: Dims
    spec: Mapping[str, Canonical]
    views: Mapping[str, View]
    extras: tuple[str, ...] = ()
    prefixes: Mapping[str, str] = field(default_factory=dict[str, str])
    dropped: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def components(self) -> tuple[str, ...]:
        """The components of the model that the file has."""
        return tuple(dict.fromkeys(tensor.component for tensor in self.spec.values()))

    def only(self, components: Collection[str]) -> "Bound":
        """Some components of the model; the keys of the others are dropped by this rule.

        Raises IncompatibleError where the file has none of that name.
        """
        unknown = [name for name in components if name not in self.components]
        if unknown:
            raise IncompatibleError(
                "model.no-component",
                f"{self.checkpoint.reference} has no {unknown[0]}",
                facts={"components": ", ".join(self.components)},
                fix="name components that the file has",
            )
        reason = f"components: [{', '.join(components)}]"
        left = tuple(prefix for name, prefix in self.prefixes.items() if name not in components)
        out = [*self.extras, *(key for key in self.checkpoint.tensors if left and key.startswith(left))]
        spec = {name: tensor for name, tensor in self.spec.items() if tensor.component in components}
        return replace(
            self,
            spec=spec,
            views={name: self.views[name] for name in spec},
            extras=(),
            prefixes={name: prefix for name, prefix in self.prefixes.items() if name in components},
            dropped={**dict.fromkeys(out, reason), **self.dropped},
        )


def bind(checkpoint: Checkpoint, table: Table, layout: str, prefixes: Mapping[str, str]) -> Bound:
    """The views of every canonical tensor of `table` in a checkpoint whose keys are named by `layout`.

    `prefixes` says which components the file has and what stands before the keys of each.
    Raises IncompatibleError naming up to ten keys where blocks, tensors or shapes are not those of the family.
    """
    stored, marks, extras, dropped = _named(checkpoint, table, layout, prefixes)
    dims = solve_dims(table, layout, {name: view.shape for name, view in stored.items()}, checkpoint.reference)
    tensors = [tensor for tensor in table.expand(dims, prefixes) if layout in tensor.pieces]
    spec = {tensor.name: tensor for tensor in tensors}
    expected = stored_shapes(tensors, layout)
    first = table.components[0]
    if first in prefixes and first not in table.prefixes:
        _check_prefix(checkpoint, prefixes[first], expected, stored)
    _check_keys(checkpoint, table.family, layout, expected, stored)
    _check_dtypes(checkpoint, stored)
    views = {name: _assemble(tensor, layout, stored) for name, tensor in spec.items()} | marks
    spec |= {name: _mark(name, view, table) for name, view in marks.items()}
    symbols = {s for row in table.rows if row.component in prefixes for s in symbols_of(table, row)}
    known = {symbol: value for symbol, value in dims.items() if symbol in symbols}
    prefix = next((prefixes[c] for c in table.components if c in prefixes), "")
    return Bound(checkpoint, table.family, layout, prefix, known, spec, views, extras, prefixes, dropped)


def symbols_of(table: Table, row: Row) -> set[str]:
    """Every symbol that a row's shape, depth or presence depends on."""
    named = {*row.rows, *(row.cols or ()), *row.kernel, table.depth_of(row), row.optional, table.counted(row)}
    return {symbol for symbol in named if symbol and not symbol.isdigit()}


def _named(
    checkpoint: Checkpoint, table: Table, layout: str, prefixes: Mapping[str, str]
) -> tuple[dict[str, View], dict[str, View], tuple[str, ...], dict[str, str]]:
    """The checkpoint's views by the names that the table has for them; marks; keys of no component; keys that are no weights."""
    name_of = namer(table, layout, prefixes)
    stored: dict[str, View] = {}
    marks: dict[str, View] = {}
    extras: list[str] = []
    dropped: dict[str, str] = {}
    for key, view in checkpoint.tensors.items():
        reason = table.why_dropped(key)
        name = name_of(key)
        if key in table.marks:
            marks[key] = view
        elif reason is not None:
            dropped[key] = reason
        elif name is None:
            extras.append(key)
        elif name in stored:
            raise IncompatibleError(
                "model.duplicate-key",
                f"two keys of {checkpoint.reference} mean `{name}`",
                facts={"file": checkpoint.reference, "key": key},
                fix="leave one of them out",
            )
        else:
            stored[name] = view
    return stored, marks, tuple(extras), dropped


def _mark(name: str, view: View, table: Table) -> Canonical:
    """A mark as a tensor that only the original layout has."""
    piece = Piece(name, 0, 0, view.shape[0] if view.shape else 1)
    return Canonical(name, view.shape, None, frozenset({MARK}), (), {table.layouts[0]: (piece,)}, table.components[0])


def namer(table: Table, layout: str, prefixes: Mapping[str, str]) -> Callable[[str], str | None]:
    """A function from a file's keys to the names that the table has for them (None: of no component)."""
    written = {c: table.prefixes[c][layout][0] if c in table.prefixes else "" for c in prefixes}

    def name_of(key: str) -> str | None:
        component = next((c for c, prefix in prefixes.items() if key.startswith(prefix)), None)
        return None if component is None else written[component] + _alias(key[len(prefixes[component]) :], table)

    return name_of


def _alias(name: str, table: Table) -> str:
    """The table's name for one of its aliases: another last part of a name."""
    for alias, canonical in table.aliases.items():
        if name.endswith(alias):
            return name.removesuffix(alias) + canonical
    return name


def solve_dims(table: Table, layout: str, shapes: Mapping[str, tuple[int, ...]], reference: str, *, partial: bool = False) -> Dims:
    """Depths, flags and widths from the names and shapes found in a file; `partial` allows blocks that are not there.

    Each width is what most of the table rows say that have it as their only unknown, so that one wrong tensor is not
    believed; it is then found by the shape check.
    """
    dims: dict[str, int] = {
        symbol: _depth(stems[layout], shapes, reference, partial) if layout in stems else 0 for symbol, stems in table.depth_stems.items()
    }
    for flag in table.flags:
        dims[flag] = int(any(_blocks_with(table, row, layout, shapes, dims) for row in table.rows if row.optional == flag))
    for row in table.rows:
        counted = table.counted(row)
        if counted is not None and not row.where.startswith("~"):
            dims[counted] = min(_blocks_with(table, row, layout, shapes, dims), dims.get(counted, _MANY))
    equations = list(_equations(table, layout, shapes, dims))
    for _ in range(3):
        votes: dict[str, Counter[int]] = {}
        for symbols, value in equations:
            unknown = {s for s in symbols if s not in dims and not s.isdigit()}
            if len(unknown) == 1:
                symbol = unknown.pop()
                rest = value - sum(size(s, dims) for s in symbols if s != symbol)
                votes.setdefault(symbol, Counter())[max(rest // symbols.count(symbol), 0)] += 1
        dims |= {symbol: counted.most_common(1)[0][0] for symbol, counted in votes.items()}
    for row in table.rows:
        for symbol in symbols_of(table, row):
            dims.setdefault(symbol, 0)
    return dims


def _depth(stem: str, shapes: Iterable[str], reference: str, partial: bool) -> int:
    pattern = re.compile(re.escape(stem) + r"\.(\d+)\.")
    found = {int(match[1]) for name in shapes if (match := pattern.match(name))}
    depth = max(found, default=-1) + 1
    missing = sorted(set(range(depth)) - found)
    if missing and not partial:
        raise IncompatibleError(
            "model.missing-blocks",
            f"{reference} has no {stem}.{missing[0]}, though it has {stem}.{depth - 1}",
            facts={"expected": f"{stem}.0 to {stem}.{depth - 1}", "missing": ", ".join(map(str, missing[:SHOWN]))},
            fix="use the complete checkpoint",
        )
    return depth


def _blocks_with(table: Table, row: Row, layout: str, shapes: Mapping[str, object], dims: Dims) -> int:
    """In how many of its blocks a row is there (0 or 1 where it stands in none)."""
    depth = table.depth_of(row)
    fills: Iterable[dict[str, int]] = ({depth: i} for i in range(dims[depth])) if depth else ({},)
    return sum(any(table.key(stem, row.suffixes[0], layout, fill) in shapes for stem in row.stems(layout)) for fill in fills)


def _equations(table: Table, layout: str, shapes: Mapping[str, tuple[int, ...]], dims: Dims) -> Iterable[tuple[tuple[str, ...], int]]:
    """Pairs (symbols, value) that say: the sum of these dims is this value."""
    for row in table.rows:
        depth = table.depth_of(row)
        inside = places(row, dims[depth], dims) if depth else range(1)
        if not inside or (row.optional and not dims[row.optional]):
            continue
        stems = row.stems(layout)
        fills = ({depth: i} if depth else {} for i in inside)  # the first block that has the row: adapters leave some out
        fill = next((fill for fill in fills if any(table.key(stem, row.suffixes[0], layout, fill) in shapes for stem in stems)), None)
        if fill is None:
            continue
        split = len(stems) == len(row.rows) > 1
        form = row.forms.get(layout)
        for i, stem in enumerate(stems):
            shape = shapes.get(table.key(stem, row.suffixes[0], layout, fill))
            if shape is None:
                continue
            shape = shape[::-1] if form == "transposed" else shape
            if row.rows and shape:
                yield ((row.rows[i],) if split else row.rows), shape[0]
            if row.cols is not None and len(shape) > 1:
                yield row.cols, shape[1]
            if row.kernel and not form:
                yield from (((symbol,), value) for symbol, value in zip(row.kernel, shape[2:], strict=False))


def _check_prefix(checkpoint: Checkpoint, prefix: str, expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, View]) -> None:
    """Tensors that seem to be missing may be there under another prefix."""
    elsewhere = [p + name for name in expected if name not in stored for p in PREFIXES if p + name in checkpoint.tensors]
    if elsewhere:
        raise IncompatibleError(
            "model.mixed-names",
            f"{len(elsewhere)} of {len(expected)} tensors of {checkpoint.reference} have another prefix than the others",
            facts={"file": checkpoint.reference, "key": _shown(elsewhere), "expected": f"`{prefix}` before every key"},
            fix="use a file whose keys are all of one kind",
        )


def _check_dtypes(checkpoint: Checkpoint, stored: Mapping[str, View]) -> None:
    """Weights are floats: numbers of other types mean nothing without what belongs to them."""
    wrong = [name for name, view in stored.items() if not all(DTYPES[dtype].is_float for dtype in view.dtypes)]
    if wrong:
        raise IncompatibleError(
            "model.wrong-dtype",
            f"{len(wrong)} of {len(stored)} tensors of {checkpoint.reference} are stored in a type that weights do not have",
            facts={
                "file": checkpoint.reference, "key": _shown(wrong), "expected": "a float type",
                "found": ", ".join(sorted(stored[wrong[0]].dtypes)),
            },
            fix="use the bf16 checkpoint that it was made from",
        )  # fmt: skip


def _check_keys(
    checkpoint: Checkpoint, family: str, layout: str, expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, View]
) -> None:
    missing = [name for name in expected if name not in stored]
    unknown = [name for name in stored if name not in expected]
    wrong = [name for name, shape in expected.items() if name in stored and stored[name].shape != shape]
    facts = {"file": checkpoint.reference, "layout": layout}
    if wrong:
        name = wrong[0]
        raise IncompatibleError(
            "model.wrong-shape",
            f"{len(wrong)} of {len(expected)} tensors of {checkpoint.reference} have a shape that no {family} model has",
            facts={
                **facts, "key": _shown(wrong), "expected": f"{list(expected[name])} for {name}",
                "found": list(stored[name].shape),
            },
            fix="use the complete, unchanged checkpoint; one of another kind is merged key by key with `structural: true` in a recipe",
        )  # fmt: skip
    if missing:
        raise IncompatibleError(
            "model.missing-keys",
            f"{len(missing)} of {len(expected)} tensors of a {family} model are missing in {checkpoint.reference}",
            facts={**facts, "missing": _shown(missing)},
            fix="use the complete checkpoint",
        )
    if unknown:
        raise IncompatibleError(
            "model.unknown-keys",
            f"{len(unknown)} keys of {checkpoint.reference} belong to no tensor of a {family} model",
            facts={**facts, "unknown": _shown(unknown)},
            fix="use a file that holds the transformer alone; an adapter is merged as an adapter",
        )


def _shown(names: list[str]) -> str:
    more = f"\n(+{len(names) - SHOWN} more)" if len(names) > SHOWN else ""
    return "\n".join(names[:SHOWN]) + more


def _assemble(tensor: Canonical, layout: str, stored: Mapping[str, View]) -> View:
    """The canonical tensor as one view over the pieces in which this layout stores it."""
    pieces = sorted(tensor.pieces[layout], key=lambda piece: piece.start)
    if len(pieces) == 1:
        return replace(stored[pieces[0].name], shape=tensor.shape, transposed=pieces[0].transposed)
    return View.stack([stored[piece.name].rows(piece.at, piece.at + piece.rows) for piece in pieces])
