"""Adapters merged by any merge method: their deltas are made on a base and merged like models, and the difference is extracted.

    method(base, base + w_1 A_1, base + w_2 A_2, ...) - base

Where no algorithm reads the base, a model of zeros takes its place: a sparse file beside the output, which holds no bytes.
Then the arithmetic is that on the deltas themselves.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxsmith.adapters.algorithms import ALGORITHMS
from fluxsmith.adapters.converting.conversion import dims_of
from fluxsmith.adapters.module import Adapter
from fluxsmith.errors import IncompatibleError
from fluxsmith.io.shards import place
from fluxsmith.layouts import Bound, table_of
from fluxsmith.layouts.binding import symbols_of
from fluxsmith.layouts.emission import emit
from fluxsmith.methods import Method
from fluxsmith.recipes.expressions import Expression, adapter, model
from fluxsmith.recipes.recipe import Recipe

__all__ = ["method_recipe", "write_zeros"]


def method_recipe(
    method: Method, adapters: Sequence[Adapter], weights: Sequence[float], options: Mapping[str, Any], *,
    zeros: Path, base: str | None = None, ignore: Sequence[str] = (), seed: int = 0,
) -> Recipe:  # fmt: skip
    """The delta of adapters merged by a method; `zeros` is the file of a model of zeros (see write_zeros).

    `base` is the model whose weights DoRA, OFT and their kin read, `ignore` are globs of keys that are left out.
    """
    if base is None:
        _check_free(adapters)
    ground = model(str(zeros), name="zero")
    read: Expression | None = None if base is None else model(base, name="base")
    terms: list[Expression] = []
    for number, (opened, weight) in enumerate(zip(adapters, weights, strict=True), 1):
        reference = opened.checkpoint.reference
        own = adapter(reference, weight=weight, name=f"adapter_{number}", base=read, ignore=ignore)
        terms.append(ground + own)
    takes_base = len(method.inputs) > 1 and not method.inputs[0].variadic and method.inputs[0].name == "base"
    merged: Expression = method(*([ground] if takes_base else []), *terms, **options)
    root = merged - ground if merged.space == "weight" else merged
    return Recipe(root, title=f"{method.name} of {len(adapters)} adapters", seed=seed)


def _check_free(adapters: Sequence[Adapter]) -> None:
    """Raise IncompatibleError where a delta depends on weights: those of a model of zeros are not meant."""
    for opened in adapters:
        for module in opened.modules:
            rules = ALGORITHMS[module.algorithm]
            if rules.reads(module.shapes) != "nothing":
                raise IncompatibleError(
                    "adapter.needs-base",
                    f"what {rules.title} means at `{module.name}` depends on the base's weight",
                    facts={"file": opened.checkpoint.reference, "tensor": module.target.tensor},
                    fix="give the model that it was trained on: --base REF",
                )


def write_zeros(adapters: Sequence[Adapter], path: Path, notes: list[str], base: Bound | None = None) -> None:
    """A model of zeros of the family and size that adapters are for, with all that they change; it takes no room on the disk.
    With a `base` it has that model's size.

    Raises IncompatibleError where the family has no table.
    """
    table = table_of(adapters[0].family)
    if table is None:
        raise IncompatibleError(
            "adapter.no-table",
            f"{adapters[0].checkpoint.reference} is for a model that fluxsmith has no table of",
            fix="fluxsmith apply each to its base, merge the results, then fluxsmith extract",
        )
    dims: dict[str, int] = {} if base is None else dict(base.dims)
    for opened in adapters if base is None else ():
        dims |= {symbol: max(value, dims.get(symbol, 0)) for symbol, value in dims_of(table, opened, notes).items()}
    # Of widths that no adapter tells any will do: nothing of these tensors is changed.
    sizes = {symbol for row in table.rows for symbol in symbols_of(table, row)} | set(table.depth_stems)
    dims |= {symbol: 1 for symbol in sizes if not dims.get(symbol) and symbol not in table.flags}
    components = (
        set(base.components)
        if base is not None
        else {module.target.component for opened in adapters for module in opened.modules} | {table.components[0]}
    )
    spec = table.expand(dims, components)
    layout = "comfy" if components & set(table.comfy_only) else table.layouts[0]
    emitted = emit(spec, layout, table)
    (file,) = place([(t.name, "F32", t.shape) for t in emitted], stem=path.stem, shard_size=None, metadata={"format": "pt"})
    with path.open("wb") as out:
        out.write(file.header({"format": "pt"}))
        os.ftruncate(out.fileno(), file.size)
