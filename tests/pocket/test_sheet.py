from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fluxsmith.pocket.digits import load_split
from fluxsmith.pocket.sheet import PAPER, TILE, Row, Section, draw_sheet, save_sheet


def test_sheet_shows_every_pixel_of_every_image(tmp_path: Path) -> None:
    images = load_split("test").images[:3]
    save_sheet(tmp_path / "sheet.png", [Section("", [Row("real", images)])], ["a", "b", "c"], title="Digits")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("L"))
    for picture in images:
        large = np.repeat(np.repeat(np.round(picture * 255).astype(np.uint8), TILE // 8, 0), TILE // 8, 1)
        windows = np.lib.stride_tricks.sliding_window_view(pixels, large.shape)
        assert (windows == large).all((2, 3)).sum() == 1


def test_nothing_is_cut_off_at_the_edges() -> None:
    images = load_split("test").images[:2]
    long = "a label that is much longer than two columns of digits are wide"
    for title, label, note in (("x", long, "1 %"), (long, "x", ""), ("", "x", long)):
        pixels = np.asarray(draw_sheet([Section(long, [Row(label, images, note)])], ["a", "b"], title, long))
        for edge in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]):
            assert (edge == PAPER).all()


def test_rows_must_fill_the_columns() -> None:
    with pytest.raises(ValueError, match="short"):
        draw_sheet([Section("", [Row("short", load_split("test").images[:2])])], ["a", "b", "c"])
