"""The scores of all children as a picture: methods down, skills across, one panel for defaults and one for best settings."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fluxsmith.errors import UsageError
from fluxsmith.reports.methods_bench.bench import Bench, Row
from fluxsmith.reports.methods_bench.verdicts import best_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_drawable", "save_heat_map"]

ROW_HEIGHT, COLUMN_WIDTH = 0.27, 0.62
COLOURS = "YlGnBu"


def check_drawable() -> None:
    """Raise UsageError where matplotlib is missing, before an hour's work and not after it."""
    if find_spec("matplotlib") is None:
        raise UsageError("usage.missing-extra", "matplotlib is not installed", fix="pip install 'fluxsmith[generate]'")


def save_heat_map(path: Path, bench: Bench) -> None:
    """Write the picture as PNG: references on top, then methods by their best mean."""
    from matplotlib.figure import Figure

    best = best_rows(bench)
    default = {row.name: row for row in reversed(bench.rows)}  # of two rows of a method the first is the default
    panels = [
        ("at the default", [*bench.references, *(default[row.name] for row in best)]),
        ("at the best setting", [*bench.references, *best]),
    ]
    height = (len(panels[0][1]) + 1) * ROW_HEIGHT
    width = 2 * (len(bench.skills) + 1) * COLUMN_WIDTH
    figure = Figure(figsize=(width + 2.6, height + 1.9), dpi=130, layout="constrained")
    for index, (title, rows) in enumerate(panels):
        axes = figure.add_subplot(1, 2, index + 1)
        _panel(axes, title, rows, bench, labels=index == 0)
    figure.suptitle("How often a merged model draws what it is asked for (%)", fontsize=12)
    figure.savefig(path, format="png")


def _panel(axes: Axes, title: str, rows: list[Row], bench: Bench, *, labels: bool) -> None:
    columns = [*bench.skills, "mean"]
    values = np.array([[*(row.record.accuracy[skill] for skill in bench.skills), row.record.mean] for row in rows])
    axes.imshow(values, cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        bold: Any = "bold" if x == len(columns) - 1 else "normal"
        axes.text(
            x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, weight=bold, color="white" if value > 0.55 else "#1c1e22"
        )
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="left", fontsize=9)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), [row.name for row in rows] if labels else [], fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.axhline(len(bench.references) - 0.5, color="#1c1e22", linewidth=1.2)
    axes.axvline(len(columns) - 1.5, color="white", linewidth=3)
    axes.set_title(title, fontsize=10)
