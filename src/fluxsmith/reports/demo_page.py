"""The demo's page: one file of HTML that needs nothing from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from fluxsmith.reports.style import STYLE

if TYPE_CHECKING:
    from fluxsmith.generation.pocket_eval import SkillScore

__all__ = ["demo_page"]


def demo_page(scores: Mapping[str, Mapping[str, SkillScore]], judges: Mapping[str, float], sheet: Path, formula: str, steps: int) -> str:
    """The page as text; the sheet is put inside it."""
    picture = base64.b64encode(sheet.read_bytes()).decode()
    skills = list(next(iter(scores.values())))
    head = "".join(f"<th>{escape(skill)}</th>" for skill in skills)
    rows = "".join(
        f"<tr><td>{escape(name)}</td>" + "".join(_cell(row[skill].accuracy) for skill in skills) + "</tr>" for name, row in scores.items()
    )
    count = len(next(iter(next(iter(scores.values())).values())).images)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>fluxsmith demo</title><style>{STYLE}</style></head><body>
<h1>Two FLUX checkpoints, merged</h1>
<p class="lead">Real FLUX transformers of half a million parameters, trained on handwritten digits: <b>schnell</b> learned the word
“inverted”, <b>dev</b> (with a guidance embedding) the word “sideways”. No parent can do both.</p>
<h2>What they draw</h2>
<img alt="Rows of digits drawn by the parents and the merged models, from the same seeds" src="data:image/png;base64,{picture}">
<h2>How often they draw what was asked for</h2>
<table><thead><tr><th>model</th>{head}</tr></thead><tbody>{rows}</tbody></table>
<p class="lead">{count} images for each cell, {steps} steps, same seeds in every row. The judges are classifiers;
on real test images they are right in {judges["digit"]:.1%} (digit) and {judges["style"]:.1%} (style) of cases.</p>
<h2>How to do this with your own files</h2>
<pre><code>fluxsmith plan  --preset flux-krea-schnell -m schnell=FILE -m krea=FILE      # headers only: what would happen
fluxsmith merge --preset flux-krea-schnell -m schnell=FILE -m krea=FILE -o merged/transformer
fluxsmith merge "{escape(formula)}" -m base=FILE -m schnell=FILE -m dev=FILE --guidance drop -o out.safetensors
fluxsmith diff  FILE merged/transformer                                      # what changed, block by block</code></pre>
</body></html>
"""


def _cell(share: float) -> str:
    return f'<td>{share:.0%}<span class="bar" style="width:{4 * share:.2f}rem"></span></td>'
