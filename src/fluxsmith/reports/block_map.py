"""A picture of numbers per block: a row for each series, a cell for each block, darker for larger numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["block_map", "in_block_order"]

_CELL, _GAP, _LABEL = 14, 2, 150  # pixels


def block_map(series: Mapping[str, Mapping[str, float]], blocks: Sequence[str], label: str) -> str:
    """An SVG. `series` maps names to numbers by block, shares such as 0.12; `label` says what they are, for who cannot see
    it. A block that a series lacks stays empty; infinite numbers are as dark as the largest."""
    finite = [share for row in series.values() for share in row.values() if math.isfinite(share)]
    top = max(finite, default=0.0) or 1.0
    cells: list[str] = []
    for line, (name, row) in enumerate(series.items()):
        y = line * (_CELL + _GAP)
        cells.append(f'<text x="{_LABEL - 8}" y="{y + 11}" text-anchor="end">{escape(name[:20])}</text>')
        for column, block in enumerate(blocks):
            if block in row:
                opacity = 0.06 + 0.94 * min(row[block] / top, 1.0)
                place = f'x="{_LABEL + column * (_CELL + _GAP)}" y="{y}" width="{_CELL}" height="{_CELL}"'
                title = f"{escape(block)}: {row[block]:.2%} {escape(name)}"
                cells.append(f'<rect {place} opacity="{opacity:.2f}"><title>{title}</title></rect>')
    width, height = _LABEL + len(blocks) * (_CELL + _GAP), len(series) * (_CELL + _GAP)
    svg = f'<svg width="{width}" height="{height}" role="img" aria-label="{escape(label)}">{"".join(cells)}</svg>'
    return f'<div class="wide">{svg}</div>'


def in_block_order(blocks: Sequence[str]) -> list[str]:
    """Names with numbers in the order of the numbers."""

    def key(block: str) -> list[tuple[int, int, str]]:
        return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", block) if part]

    return sorted(blocks, key=key)
