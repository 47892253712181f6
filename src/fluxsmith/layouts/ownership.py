"""Whose the keys of a file are: what stands before each component's keys, all-in-one or in a file of its own.

Nothing is decoded, renamed or checked for completeness here: this is for copying what is stored as it is stored.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.layouts.detection import ENOUGH, anchors_of, detect
from fluxsmith.layouts.emission import COMFY_PREFIX
from fluxsmith.layouts.families import known_tables
from fluxsmith.layouts.standalone import COMPONENT_TABLES, tables_for
from fluxsmith.layouts.table import Table

__all__ = ["Ownership", "all_in_one_layout", "fits", "owners_of", "place_of"]

_TEXT = "text_model."  # the first word of CLIP's names in its own file, which some all-in-one layouts have in the prefix


@dataclass(frozen=True)
class Ownership:
    """The table and layout by which a file is named, and per component what stands before the names of its own file.

    A file that no table describes has no table and no places.
    """

    table: Table | None
    layout: str
    places: Mapping[str, str]

    @property
    def whole(self) -> bool:
        """Whether it is an all-in-one file."""
        return len(self.places) > 1

    @property
    def alone(self) -> bool:
        """Whether it is a text encoder or VAE in a file of its own."""
        return self.table is not None and self.table is COMPONENT_TABLES.get(self.table.family)

    def component(self, key: str) -> str | None:
        """The component that a key belongs to, None for a key of none."""
        found = [name for name, place in self.places.items() if key.startswith(place)]
        return max(found, key=lambda name: len(self.places[name]), default=None)

    def bare(self, key: str) -> str:
        """A key as its component's own file has it; one of no component as it is."""
        owner = self.component(key)
        return key if owner is None else key[len(self.places[owner]) :]


def owners_of(checkpoint: Checkpoint, asked: Collection[str] = ()) -> Ownership:
    """Whose the keys of a checkpoint are, by their names alone, however its tensors are stored.

    Components that are `asked` for decide where names alone do not (CLIP-L and CLIP-G).
    Raises IncompatibleError where two readings are equally good.
    """
    candidate = detect(checkpoint, known_tables()) or detect(checkpoint, tables_for(checkpoint, asked))
    if candidate is None:
        return Ownership(None, "", {})
    places = {component: prefix.removesuffix(_TEXT) for component, prefix in candidate.prefixes.items()}
    return Ownership(candidate.table, candidate.layout, places)


def all_in_one_layout(table: Table) -> str:
    """What the layout of a family's all-in-one file is called."""
    return "comfy" if table.layouts[0] == "bfl" else table.layouts[0]


def place_of(table: Table, component: str) -> str:
    """What a family's all-in-one file writes before the names of a component's own file."""
    prefixes = table.prefixes.get(component)
    return COMFY_PREFIX if prefixes is None else prefixes[table.layouts[0]][0].removesuffix(_TEXT)


def fits(table: Table, owners: Ownership) -> bool:
    """Whether the tensors of a file can stand in the all-in-one file of a family under the names that they have."""
    if owners.table is None:
        return True
    if owners.table is table:
        return owners.layout == table.layouts[0]
    component = owners.table.family
    if component not in table.components:
        return False
    wanted = anchors_of(table, table.layouts[0])[component]
    found = {place_of(table, component) + name for name in anchors_of(owners.table, owners.layout)[component]}
    return len(wanted & found) >= ENOUGH * len(wanted)
