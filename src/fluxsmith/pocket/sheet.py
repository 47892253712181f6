"""A contact sheet: rows of sampled digits with labels, drawn with Pillow as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fluxsmith.pocket.digits import Images

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

__all__ = ["Row", "Section", "draw_sheet", "save_sheet"]

SCALE = 6
TILE = 8 * SCALE
GAP = 6
SECTION_GAP = 26
MARGIN = 32
TITLE, HEADING, TEXT, SMALL = 24, 17, 15, 13

PAPER = (252, 252, 250)
INK = (28, 30, 34)
GREY = (120, 124, 132)
LINE = (222, 223, 220)


class Row(NamedTuple):
    """`images` [N, 8, 8] in [0, 1] beside a `label`; `note` stands right of them, for a score."""

    label: str
    images: Images
    note: str = ""


class Section(NamedTuple):
    """Rows under one heading; "" for none."""

    heading: str
    rows: Sequence[Row]


def save_sheet(path: Path, sections: Sequence[Section], columns: Sequence[str], title: str = "", subtitle: str = "") -> None:
    """Write `draw_sheet` as PNG to `path`."""
    draw_sheet(sections, columns, title, subtitle).save(path, format="PNG", optimize=True)


def draw_sheet(sections: Sequence[Section], columns: Sequence[str], title: str = "", subtitle: str = "") -> Image:
    """The sheet as an RGB image: title, column labels, and for each section its heading and rows."""
    from PIL import Image, ImageDraw

    rows = [row for section in sections for row in section.rows]
    wrong = [row.label for row in rows if len(row.images) != len(columns)]
    if wrong:
        raise ValueError(f"rows {wrong} do not have {len(columns)} images, one for each column")

    left = MARGIN + _widest([row.label for row in rows], TEXT) + 18
    tiles_end = left + len(columns) * (TILE + GAP) - GAP
    notes = _widest([row.note for row in rows], TEXT)
    width = tiles_end + (notes + 18 if notes else 0) + MARGIN
    width = max(width, 2 * MARGIN + _widest([title], TITLE), 2 * MARGIN + _widest([subtitle], TEXT))

    top = MARGIN + (TITLE + 12 if title else 0) + (TEXT + 24 if subtitle else 0)
    height = top + TEXT + 10 + sum(_height(section) for section in sections) - SECTION_GAP + MARGIN
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    _write_titles(draw, title, subtitle)
    for index, column in enumerate(columns):
        _write(draw, (left + index * (TILE + GAP) + TILE // 2, top), column, SMALL, GREY, anchor="ma")
    y = top + TEXT + 10
    for section in sections:
        _draw_section(image, draw, section, y, left, width)
        y += _height(section)
    return image


def _height(section: Section) -> int:
    heading = HEADING + 20 if section.heading else 0
    return heading + len(section.rows) * (TILE + GAP) - GAP + SECTION_GAP


def _draw_section(image: Image, draw: ImageDraw, section: Section, y: int, left: int, width: int) -> None:
    if section.heading:
        _write(draw, (MARGIN, y), section.heading, HEADING, INK)
        draw.line((MARGIN, y + HEADING + 9, width - MARGIN - 1, y + HEADING + 9), fill=LINE)
        y += HEADING + 20
    for row in section.rows:
        _write(draw, (MARGIN, y + TILE // 2), row.label, TEXT, INK, anchor="lm")
        for index, picture in enumerate(row.images):
            x = left + index * (TILE + GAP)
            image.paste(_tile(picture), (x, y))
            draw.rectangle((x - 1, y - 1, x + TILE, y + TILE), outline=LINE)  # where paper is white, so is an inverted digit
        _write(draw, (width - MARGIN, y + TILE // 2), row.note, TEXT, GREY, anchor="rm")
        y += TILE + GAP


def _tile(picture: Images) -> Image:
    """One digit [8, 8] in nearest-neighbour pixels; ink is white, as in the data."""
    from PIL import Image

    grey = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(grey).resize((TILE, TILE), Image.Resampling.NEAREST)


def _write_titles(draw: ImageDraw, title: str, subtitle: str) -> None:
    if title:
        _write(draw, (MARGIN, MARGIN), title, TITLE, INK)
    if subtitle:
        _write(draw, (MARGIN, MARGIN + (TITLE + 12 if title else 0)), subtitle, TEXT, GREY)


def _write(draw: ImageDraw, at: tuple[int, int], text: str, size: int, colour: tuple[int, int, int], anchor: str = "la") -> None:
    from PIL import ImageFont

    draw.text(at, text, font=ImageFont.load_default(size), fill=colour, anchor=anchor)


def _widest(texts: Sequence[str], size: int) -> int:
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    return max((int(font.getlength(text)) + 1 for text in texts if text), default=0)
