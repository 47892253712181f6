"""How two checkpoints differ, as one self-contained page."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from fluxsmith.reports.block_map import block_map
from fluxsmith.reports.style import STYLE

if TYPE_CHECKING:
    from fluxsmith.analysis.difference import Difference, Side, Sums

__all__ = ["diff_page"]

_TOP = 20


def diff_page(found: Difference) -> str:
    """The page as text: both sides, a map and a table of blocks, the tensors that changed most, what was not compared."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(found.a.reference)} and {escape(found.b.reference)}</title><style>{STYLE}</style></head><body>
<h1>How two checkpoints differ</h1>
<table class="words"><tbody>{_side("A", found.a)}{_side("B", found.b)}</tbody></table>
{_changes(found)}
{_apart(found)}
</body></html>
"""


def _side(name: str, side: Side) -> str:
    cells = (
        name,
        side.reference,
        side.family,
        side.layout,
        "+".join(side.dtypes),
        f"{side.tensors} tensors",
        f"{side.parameters:,} parameters",
    )
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _changes(found: Difference) -> str:
    if found.identical:
        return f"<p>Identical: all {len(found.tensors)} tensors have equal values.</p>"
    blocks = dict(found.blocks)
    series = {
        "change": {block: sums.relative for block, sums in blocks.items()},
        "signs": {block: sums.conflict_share for block, sums in blocks.items()},
        "changed": {block: sums.changed_share for block, sums in blocks.items()},
    }
    maps = "".join(block_map({name: row}, list(blocks), f"{name} by block") for name, row in series.items())
    head = "<tr><th>{}</th><th>change</th><th>cosine</th><th>signs opposite</th><th>changed</th></tr>"
    rows = "".join(_row(block, sums) for block, sums in blocks.items())
    top = "".join(_row(tensor.name, tensor.sums) for tensor in found.top(_TOP))
    return f"""<h2>By block</h2>
{maps}
<p class="lead">change is |A - B| / |A|; signs is the share of elements whose sign is opposite, changed the share that differs at all.
Each line is as dark as its own largest value.</p>
<table><thead>{head.format("block")}</thead><tbody>{rows}{_row("all", found.total)}</tbody></table>
<h2>Most changed tensors</h2>
<table><thead>{head.format("tensor")}</thead><tbody>{top}</tbody></table>"""


def _row(name: str, sums: Sums) -> str:
    cosine = "-" if sums.cosine is None else f"{sums.cosine:.6f}"
    cells = (name, f"{sums.relative:.2%}", cosine, f"{sums.conflict_share:.2%}", f"{sums.changed_share:.2%}")
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _apart(found: Difference) -> str:
    """What could not be compared, by name."""
    shapes = [f"{name}: {list(a)} and {list(b)}" for name, (a, b) in found.other_shapes.items()]
    lists = {"Only in A": found.only_in_a, "Only in B": found.only_in_b, "Of other shapes": shapes, "Not numbers": found.unread}
    parts = [
        f"<h2>{label} ({len(names)})</h2><pre><code>{escape(chr(10).join(names))}</code></pre>" for label, names in lists.items() if names
    ]
    return "".join(parts)
