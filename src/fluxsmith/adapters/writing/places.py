"""Which modules an adapter of a dialect has for a tensor: the stored tensors of the dialect's layout, or parts of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fluxsmith.adapters.targets import Place, Targets
from fluxsmith.errors import IncompatibleError
from fluxsmith.layouts import table_of

if TYPE_CHECKING:
    from fluxsmith.adapters.dialects import Dialect
    from fluxsmith.adapters.module import Target
    from fluxsmith.layouts.table import Canonical

__all__ = ["targets_of"]


def targets_of(tensor: Canonical, dialect: Dialect, family: str) -> list[Target]:
    """The modules that a dialect has for a canonical tensor, in the order in which its layout stores them.

    Raises IncompatibleError where it has no place for the tensor.
    """
    writing, table = dialect.writing, table_of(family)
    assert writing is not None
    if table is not None and tensor.component != table.components[0] and tensor.component not in dialect.prefixes:
        raise IncompatibleError(
            "adapter.component",
            f"the dialect {dialect.name} has no names for {tensor.component}",
            facts={"tensor": tensor.name, "has": ", ".join(dialect.prefixes)},
            fix=f"leave it out with --components {table.components[0]}",
        )
    layouts = table.layouts if table else tuple(tensor.pieces)
    layout = writing.other_layouts.get(family, writing.layout)
    layout = layouts[0] if layout == "original" else layout
    if table is not None and tensor.component != table.components[0]:  # all dialects name text encoders as transformers does
        layout = "diffusers" if "diffusers" in tensor.pieces else next(iter(tensor.pieces), "")
    if layout not in tensor.pieces or not re.search(writing.only, tensor.name):
        raise IncompatibleError(
            "adapter.no-place",
            f"{dialect.title} has no place for `{tensor.name}`",
            facts={"dialect": dialect.name},
            fix="choose another dialect, or leave the tensor out by rule",
        )
    prefixes = table.prefixes if table else {}
    names = Targets([tensor], prefixes)
    before = next(iter(prefixes.get(tensor.component, {}).get(layout, ())), "")
    found: list[Target] = []
    for stored in dict.fromkeys(piece.name for piece in tensor.pieces[layout]):
        stem, _, suffix = stored.removeprefix(before).rpartition(".")
        kind = "weight" if not stem or suffix in ("weight", "scale") else suffix
        for parts in writing.divide(tensor):
            target = names.target(Place(tensor.component, layout, stem or suffix, kind, parts))
            if target is not None:
                found.append(target)
    return found
