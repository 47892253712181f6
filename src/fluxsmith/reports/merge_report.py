"""The report of a merge: one self-contained page that says what was made, of what, and how far it is from its inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from fluxsmith.reports.block_map import block_map, in_block_order
from fluxsmith.reports.quantisation import quantisation_html
from fluxsmith.reports.style import STYLE

if TYPE_CHECKING:
    from fluxsmith.engine.execution import Outcome
    from fluxsmith.engine.merging import Merged
    from fluxsmith.engine.plan import Plan

__all__ = ["merge_report", "report_path", "write_report"]


def report_path(output: Path) -> Path:
    """Where the report of an output lies: in its folder, or beside its file."""
    return output.with_suffix(".report.html") if output.suffix in (".safetensors", ".gguf") else output / "report.html"


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
{quantisation_html(done)}
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
    blocks = in_block_order(list(outcome.distances))
    names = [name for name in inputs if any(name in outcome.distances[block] for block in blocks)]
    if not blocks or not names:
        return "<p>Nothing was merged: every tensor was copied or converted.</p>"
    series = {name: {b: _relative(outcome.distances[b][name]) for b in blocks if name in outcome.distances[b]} for name in names}
    top = max(share for row in series.values() for share in row.values())
    overall = "".join(f"<tr><td>{escape(name)}</td><td>{_overall(outcome, name):.2%}</td></tr>" for name in names)
    return (
        block_map(series, blocks, "distance of the result from every input by block")
        + f'<p class="lead">|result - input| / |input| by block, from {escape(blocks[0])} to {escape(blocks[-1])}; the darkest cell is'
        f" {top:.2%}. Measured on the first 131,072 elements of every tensor that this run merged.</p>"
        f"<table><thead><tr><th>input</th><th>distance of the result</th></tr></thead><tbody>{overall}</tbody></table>"
    )


def _relative(sums: tuple[float, float]) -> float:
    moved, size = sums
    return math.sqrt(moved / size) if size else math.inf if moved else 0.0


def _overall(outcome: Outcome, name: str) -> float:
    sums = [block[name] for block in outcome.distances.values() if name in block]
    return _relative((sum(moved for moved, _ in sums), sum(size for _, size in sums)))
