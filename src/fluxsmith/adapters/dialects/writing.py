"""What a dialect needs to be written, beside what it needs to be read: the same names in the other direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fluxsmith.adapters.dialects.base import Dialect, Key
    from fluxsmith.layouts.table import Canonical

__all__ = ["Scale", "Writing", "spell_by_prefix", "whole"]

#: Where the scale of a module goes: keys called alpha, the JSON in the file's header, adapter_config.json, or nowhere,
#: so that it is multiplied into a factor.
Scale = Literal["alpha", "header", "config", "nowhere"]


def spell_by_prefix(dialect: Dialect, key: Key) -> str:
    """The first prefix of the component, the name, the role: what `by_prefix` takes apart."""
    name = key.name.replace(".", "_") if dialect.joined else key.name
    return f"{dialect.prefixes[key.component][0]}{name}.{key.role}"


def whole(tensor: Canonical) -> tuple[tuple[int, int] | None, ...]:
    """A tensor is one module, as it stands in the layout."""
    return (None,)


@dataclass(frozen=True)
class Writing:
    """How a dialect is written.

    `layout` is the layout whose names its programs load (`original` is the family's first one), `algorithms` are those
    that they load, `scale` says where a module's scale goes. `spell` makes a key of its parts, the inverse of
    `Dialect.parse`. `divide` gives the named parts (first and last, None: all) of a canonical tensor that are modules of
    their own. `folder` says that an adapter is a folder with adapter_config.json. `metadata` are fields of the header
    that its programs look at. `only` says which canonical tensors its programs can load, "" for all, as a regular
    expression.
    """

    layout: str
    algorithms: tuple[str, ...]
    scale: Scale = "alpha"
    spell: Callable[[Dialect, Key], str] = spell_by_prefix
    divide: Callable[[Canonical], tuple[tuple[int, int] | None, ...]] = whole
    folder: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    only: str = ""
