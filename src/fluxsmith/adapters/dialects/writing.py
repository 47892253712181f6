"""What a dialect needs to be written, beside what it needs to be read: the same names in the other direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fluxsmith.adapters.dialects.base import Key
    from fluxsmith.layouts.table import Canonical

__all__ = ["Parts", "Scale", "Writing", "spell_by_prefix", "whole"]

#: Where the scale of a module goes: keys called alpha, the JSON in the file's header, adapter_config.json, or nowhere,
#: so that it is multiplied into a factor.
Scale = Literal["alpha", "header", "config", "nowhere"]
#: The first and last named part (q, k, v, mlp) of a tensor, None for all of it.
Parts = tuple[int, int] | None


def spell_by_prefix(prefix: str, key: Key) -> str:
    """The prefix of the component, the name, the role: what `by_prefix` takes apart."""
    return f"{prefix}{key.name.replace('.', '_') if key.joined else key.name}.{key.role}"


def whole(tensor: Canonical) -> tuple[Parts, ...]:
    """A tensor is one module, as it stands in the layout."""
    return (None,)


@dataclass(frozen=True)
class Writing:
    """How a dialect is written.

    `layout` is the layout whose names its programs load (`original` is the family's first one), `other_layouts` are
    those of families that are an exception. `algorithms` are those that its programs load (`dora`: with a magnitude),
    `scale` says where a module's scale goes. `spell(prefix, key)` makes a key of its parts, the inverse of
    `Dialect.parse`. `divide` gives the parts of a canonical tensor that are modules of their own. `folder` says
    that an adapter is a folder with adapter_config.json. `borrows` says that factors without a word in the
    dialect's vocabulary have LyCORIS' one. `only` says which canonical tensors its programs can load, "" for all, as a
    regular expression.
    """

    layout: str
    algorithms: tuple[str, ...]
    scale: Scale = "alpha"
    spell: Callable[[str, Key], str] = spell_by_prefix
    divide: Callable[[Canonical], tuple[Parts, ...]] = whole
    folder: bool = False
    borrows: bool = False
    only: str = ""
    other_layouts: Mapping[str, str] = field(default_factory=dict[str, str])
