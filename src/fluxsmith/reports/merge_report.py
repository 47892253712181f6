"""The report of a merge: one self-contained page that says what was made, of what, and how far it is from its inputs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from fluxsmith.reports.style import STYLE

if TYPE_CHECKING:
    from fluxsmith.engine.execution import Outcome
    from fluxsmith.engine.merging import Merged
    from fluxsmith.engine.plan import Plan

__all__ = ["merge_report", "report_path", "write_report"]

_CELL, _GAP, _LABEL = 14, 2, 150  # pixels of the block map


def report_path(output: Path) -> Path:
    """Where the report of an output lies: in its folder, or beside its file."""
    return output / "report.html" if output.suffix != ".safetensors" else output.with_suffix(".report.html")


def write_report(done: Merged, path: Path) -> Path | None:
    """Write the report of a finished merge; returns where it is, None where the disk does not take it: the result counts."""
    try:
        path.write_text(merge_report(done))
    except OSError:
        return None
    return path


def merge_report(done: Merged) -> str:
    """The page as text."""
    plan = done.plan
    size, count = sum(file.size for file in plan.files), sum(len(file.tensors) for file in plan.files)
    notes = "".join(f"<li>{escape(note)}</li>" for note in (*plan.notes, *_warnings(done.outcome)))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(plan.title or plan.formula)}</title><style>{STYLE}</style></head><body>
<h1>{escape(plan.title if plan.title not in ("", plan.formula) else done.path.name)}</h1>
<p class="lead">{escape(done.path.name)}: {count} tensors, {_size(size)}, {escape(plan.family)} in the {escape(plan.layout)} layout,
made in {done.outcome.seconds:.1f} s by fluxsmith {escape(plan.metadata["fluxsmith.version"])}.</p>
<pre><code>{escape(plan.formula)}</code></pre>
{f"<ul>{notes}</ul>" if notes else ""}
<h2>What it was made of</h2>
{_inputs(plan, done.hashes)}
<h2>What became of every tensor</h2>
{_actions(plan)}
<h2>How far it is from each input</h2>
{_distances(done.outcome, [i.name for i in plan.inputs])}
<h2>The recipe</h2>
<p class="lead">It stands in the file, too: <code>fluxsmith reproduce</code> makes the same bytes again.</p>
<pre><code>{escape(plan.recipe.strip())}</code></pre>
</body></html>
"""


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _warnings(outcome: Outcome) -> list[str]:
    equal = [f"The result is equal to {name}: the merge changed nothing." for name in sorted(outcome.equal_to)]
    total = sum(outcome.saturated.values())
    return equal + ([f"{total} values were too large for the output's type and became its largest."] if total else [])


def _inputs(plan: Plan, hashes: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><td><b>{escape(i.name)}</b></td><td>{escape(i.reference)}</td><td>{escape(i.layout)}</td><td>{i.tensors}</td>"
        f"<td>{escape(', '.join(f'{n} {what}' for what, n in i.outcome.items()))}</td>"
        f"<td><code>{'<br>'.join(escape(hashes.get(f.path, '-')[:23]) for f in i.files) or 'in memory'}</code></td></tr>"
        for i in plan.inputs
    )
    head = "<tr><th>input</th><th>reference</th><th>layout</th><th>tensors</th><th>outcome</th><th>hash</th></tr>"
    return f'<table class="words"><thead>{head}</thead><tbody>{rows}</tbody></table>'


def _actions(plan: Plan) -> str:
    rows = "".join(f"<tr><td>{escape(what)}</td><td>{count}</td></tr>" for what, count in plan.count_actions(plan.jobs).items())
    return f"<table><tbody>{rows}</tbody></table>"


def _distances(outcome: Outcome, inputs: Sequence[str]) -> str:
    """A row per input, a cell per block: |out - in| / |in|, darker the farther."""
    blocks = sorted(outcome.distances, key=_order)
    names = [name for name in inputs if any(name in outcome.distances[block] for block in blocks)]
    if not blocks or not names:
        return "<p>Nothing was merged: every tensor was copied or converted.</p>"
    shares = {(name, block): _relative(outcome.distances[block].get(name)) for name in names for block in blocks}
    top = max((share for share in shares.values() if share is not None and share < math.inf), default=0.0) or 1.0
    cells: list[str] = []
    for row, name in enumerate(names):
        y = row * (_CELL + _GAP)
        cells.append(f'<text x="{_LABEL - 8}" y="{y + 11}" text-anchor="end">{escape(name[:20])}</text>')
        for column, block in enumerate(blocks):
            share = shares[name, block]
            if share is None:
                continue
            opacity = 0.06 + 0.94 * min(share / top, 1.0)
            cells.append(
                f'<rect x="{_LABEL + column * (_CELL + _GAP)}" y="{y}" width="{_CELL}" height="{_CELL}" opacity="{opacity:.2f}">'
                f"<title>{escape(block)}: {share:.2%} from {escape(name)}</title></rect>"
            )
    width, height = _LABEL + len(blocks) * (_CELL + _GAP), len(names) * (_CELL + _GAP)
    overall = "".join(f"<tr><td>{escape(name)}</td><td>{_overall(outcome, name):.2%}</td></tr>" for name in names)
    svg = f'<svg width="{width}" height="{height}" role="img" aria-label="distance by block and input">{"".join(cells)}</svg>'
    ends = f"from {escape(blocks[0])} to {escape(blocks[-1])}"
    return (
        f'<div class="wide">{svg}</div>'
        f'<p class="lead">|result - input| / |input| by block, {ends}; the darkest cell is {top:.2%}.'
        " Measured on the first 131,072 elements of every merged tensor.</p>"
        f"<table><thead><tr><th>input</th><th>distance of the result</th></tr></thead><tbody>{overall}</tbody></table>"
    )


def _relative(sums: tuple[float, float] | None) -> float | None:
    if sums is None:
        return None
    moved, size = sums
    return math.sqrt(moved / size) if size else math.inf if moved else 0.0


def _overall(outcome: Outcome, name: str) -> float:
    sums = [block[name] for block in outcome.distances.values() if name in block]
    return _relative((sum(moved for moved, _ in sums), sum(size for _, size in sums))) or 0.0


def _order(block: str) -> list[tuple[int, int | str]]:
    """Names with numbers in the order of the numbers."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", block) if part]
