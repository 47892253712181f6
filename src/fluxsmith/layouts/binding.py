"""A checkpoint seen through a layout: every canonical tensor as a view of the file's bytes."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fluxsmith.errors import IncompatibleError
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.dtypes import DTYPES
from fluxsmith.io.views import View
from fluxsmith.layouts.table import Canonical, Dims, Row, Table

__all__ = ["PREFIXES", "Bound", "bind", "solve_dims"]

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "model.", "module.", "_orig_mod.", "ema.", "")
SHOWN = 10


@dataclass(frozen=True)
class Bound:
    """A checkpoint in canonical form.

    `spec` has every canonical tensor in table order, `views` its bytes, `extras` the keys of the file that are no part
    of this model (other components of an all-in-one file), `prefix` what stood before every key.
    """

    checkpoint: Checkpoint
    family: str
    layout: str
    prefix: str
    dims: Dims
    spec: Mapping[str, Canonical]
    views: Mapping[str, View]
    extras: tuple[str, ...] = ()


def bind(checkpoint: Checkpoint, table: Table, layout: str, prefix: str) -> Bound:
    """The views of every canonical tensor of `table` in a checkpoint whose keys are named by `layout` after `prefix`.

    Raises IncompatibleError naming up to ten keys where blocks, tensors or shapes are not those of the family.
    """
    stored = _strip(checkpoint, table, layout, prefix)
    dims = solve_dims(table, layout, {name: view.shape for name, view in stored.items()}, checkpoint.reference)
    spec = {tensor.name: tensor for tensor in table.expand(dims)}
    expected = _expected_shapes(spec.values(), layout)
    _check_prefix(checkpoint, prefix, expected, stored)
    _check_keys(checkpoint, table.family, layout, expected, stored)
    _check_dtypes(checkpoint, stored)
    views = {name: _assemble(tensor, layout, stored) for name, tensor in spec.items()}
    extras = tuple(key for key in checkpoint.tensors if not key.startswith(prefix))
    return Bound(checkpoint, table.family, layout, prefix, dims, spec, views, extras)


def _strip(checkpoint: Checkpoint, table: Table, layout: str, prefix: str) -> dict[str, View]:
    stored: dict[str, View] = {}
    for key, view in checkpoint.tensors.items():
        if not key.startswith(prefix):
            continue
        name = key[len(prefix) :]
        if layout == "bfl":
            for alias, canonical in table.aliases.items():
                name = name.removesuffix(alias) + canonical if name.endswith(alias) else name
        if name in stored:
            raise IncompatibleError(
                "model.duplicate-key",
                f"two keys of {checkpoint.reference} mean `{name}`",
                facts={"file": checkpoint.reference, "key": key},
                fix="leave one of them out",
            )
        stored[name] = view
    return stored


def solve_dims(table: Table, layout: str, shapes: Mapping[str, tuple[int, ...]], reference: str) -> Dims:
    """Depths, flags and widths from the names and shapes found in a file.

    Each width is what most of the table rows say that have it as their only unknown, so that one wrong tensor is not
    believed; it is then found by the shape check.
    """
    dims: dict[str, int] = {symbol: _depth(stems[layout], shapes, reference) for symbol, stems in table.depth_stems.items()}
    for flag in table.flags:
        optional = [name for row in table.rows if row.optional == flag for name in _names(row, layout)]
        dims[flag] = int(any(f"{name}.weight" in shapes for name in optional))
    equations = list(_equations(table, layout, shapes))
    for _ in range(3):
        votes: dict[str, Counter[int]] = {}
        for symbols, value in equations:
            unknown = {s for s in symbols if s not in dims}
            if len(unknown) == 1:
                symbol = unknown.pop()
                rest = value - sum(dims[s] for s in symbols if s != symbol)
                votes.setdefault(symbol, Counter())[max(rest // symbols.count(symbol), 0)] += 1
        dims |= {symbol: counted.most_common(1)[0][0] for symbol, counted in votes.items()}
    for row in table.rows:
        for symbol in (*row.rows, *(row.cols or ())):
            dims.setdefault(symbol, 0)
    return dims


def _depth(stem: str, shapes: Iterable[str], reference: str) -> int:
    pattern = re.compile(re.escape(stem) + r"\.(\d+)\.")
    found = {int(match[1]) for name in shapes if (match := pattern.match(name))}
    depth = max(found, default=-1) + 1
    missing = sorted(set(range(depth)) - found)
    if missing:
        raise IncompatibleError(
            "model.missing-blocks",
            f"{reference} has no {stem}.{missing[0]}, though it has {stem}.{depth - 1}",
            facts={"expected": f"{stem}.0 to {stem}.{depth - 1}", "missing": ", ".join(map(str, missing[:SHOWN]))},
            fix="use the complete checkpoint",
        )
    return depth


def _names(row: Row, layout: str) -> tuple[str, ...]:
    return row.names.get(layout, (row.stem,))


def _equations(table: Table, layout: str, shapes: Mapping[str, tuple[int, ...]]) -> Iterable[tuple[tuple[str, ...], int]]:
    """Pairs (symbols, value) that say: the sum of these dims is this value."""
    zero = dict.fromkeys(table.depth_stems, 0)
    for row in table.rows:
        names = _names(row, layout)
        split = len(names) == len(row.rows) > 1
        for i, name in enumerate(names):
            suffix = table.suffixes.get(layout, {}).get(row.suffixes[0], row.suffixes[0])
            shape = shapes.get(f"{name.format(**zero)}.{suffix}")
            if shape:
                yield ((row.rows[i],) if split else row.rows), shape[0]
                if row.cols is not None and len(shape) > 1:
                    yield row.cols, shape[1]


def _expected_shapes(spec: Iterable[Canonical], layout: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in spec:
        for piece in tensor.pieces[layout]:
            rows = shapes.get(piece.name, (0,))[0] + piece.rows
            shapes[piece.name] = (rows, *tensor.shape[1:])
    return shapes


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
            fix="use the complete, unchanged checkpoint",
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
        return stored[pieces[0].name]
    return View.stack([stored[piece.name].rows(piece.at, piece.at + piece.rows) for piece in pieces])
