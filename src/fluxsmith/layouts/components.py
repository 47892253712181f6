"""Putting components together: the rows of a text encoder or VAE under the names that a family's layouts give them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from fluxsmith.layouts.table import Row

__all__ = ["Component", "rows_of"]


@dataclass(frozen=True)
class Component:
    """One component of a family. Its rows are named as in its own original code, `names` give the others' words.

    `prefixes` says per layout what may stand before its keys; the first is what is written, and an empty one is that
    of a file or folder that holds the component alone; a layout with none at all does not have the component.
    `list_stems` gives, where it has a list of equal blocks, what that is called in each layout; the depth symbol is
    then the component's name, or `depth`.
    """

    name: str
    rows: tuple[Row, ...]
    prefixes: Mapping[str, tuple[str, ...]]
    list_stems: Mapping[str, str] | None = None
    depth: str = ""

    def placed(self) -> list[Row]:
        """The rows with full names: `clip_l.` before the canonical one, the layout's prefix before the others."""
        return [self._placed(row) for row in self.rows]

    def _placed(self, row: Row) -> Row:
        names = {
            layout: tuple(prefix + stem for prefix in found[:1] for stem in row.stems(layout)) for layout, found in self.prefixes.items()
        }
        return replace(row, stem=f"{self.name}.{row.stem}", names=names, component=self.name, tags=(*row.tags, self.name))

    def depth_stems(self) -> dict[str, dict[str, str]]:
        """The entry of the list of blocks for a table."""
        if self.list_stems is None:
            return {}
        return {self.depth or self.name: {layout: self.prefixes[layout][0] + stem for layout, stem in self.list_stems.items()}}


def rows_of(components: Iterable[Component]) -> tuple[Row, ...]:
    """All rows of a family, in order."""
    return tuple(row for component in components for row in component.placed())
