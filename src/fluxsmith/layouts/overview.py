"""All families at a glance: layouts, components and what their blocks are called, from the tables themselves."""

from dataclasses import dataclass

from fluxsmith.layouts.table import Table

__all__ = ["FamilyRow", "family_row", "markdown"]


@dataclass(frozen=True)
class FamilyRow:
    """One line: `blocks` are the names that selectors know, such as `double.N`."""

    family: str
    layouts: tuple[str, ...]
    components: tuple[str, ...]
    blocks: tuple[str, ...]

    def summary(self) -> str:
        """The line in words."""
        return f"{', '.join(self.layouts)}; {', '.join(self.components)}; blocks {', '.join(self.blocks) or 'none'}"


def family_row(table: Table) -> FamilyRow:
    """The line of a family."""
    kinds: dict[str, None] = {}
    fixed: dict[str, set[int]] = {}
    for row in table.rows:
        depth = table.depth_of(row)
        if row.block:
            kind, _, number = row.block.rpartition(".")
            fixed.setdefault(kind, set()).add(int(number))
            kinds.setdefault(kind)
        elif depth and (not table.blocks or depth in table.blocks):
            kinds.setdefault(depth)
    blocks = [_named(kind, fixed.get(kind, set()) if kind not in table.depth_stems else set()) for kind in kinds]
    layouts = (*table.layouts, "comfy") if "bfl" in table.layouts else table.layouts
    return FamilyRow(table.family, layouts, table.components, tuple(blocks))


def _named(kind: str, numbers: set[int]) -> str:
    """`in.0-11` where every model of the family has these blocks, else `double.N`."""
    if not numbers:
        return f"{kind}.N"
    return f"{kind}.0-{max(numbers)}" if len(numbers) > 1 else f"{kind}.0"


def markdown(tables: tuple[Table, ...]) -> str:
    """The table of families for the documentation."""
    lines = ["| family | layouts | components | blocks |", "|---|---|---|---|"]
    for table in tables:
        row = family_row(table)
        cells = (f"`{row.family}`", *(", ".join(f"`{word}`" for word in words) for words in (row.layouts, row.components, row.blocks)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
