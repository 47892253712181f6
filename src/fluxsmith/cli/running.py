"""Running a merge under the eyes of the user, for every command that makes a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxsmith.cli.console import Console, bytes_text, duration_text
from fluxsmith.cli.progress import RunDisplay

if TYPE_CHECKING:
    from fluxsmith.engine.execution import Settings
    from fluxsmith.engine.merging import Merged
    from fluxsmith.recipes.recipe import Recipe

__all__ = ["run_and_show"]


def run_and_show(
    recipe: Recipe, output: Path, settings: Settings, console: Console, *, verb: str = "merge", report: bool = True, **options: Any
) -> Merged:
    """Run a recipe into a file or folder with a progress display, a summary and a report; options are those of engine.merge."""
    from fluxsmith.engine.merging import merge
    from fluxsmith.reports.card import card_files
    from fluxsmith.reports.merge_report import report_path, write_report

    place = report_path(Path(os.path.abspath(output)))  # the folder that one stands in is replaced by the new one
    with RunDisplay(console, verb) as display:
        done = merge(recipe, output, settings=settings, observer=display, beside=card_files, **options)
    _summarise(done, console, write_report(done, place) if report else None)
    return done


def _summarise(done: Merged, console: Console, report: Path | None) -> None:
    from fluxsmith.reports.quantisation import quantisation_facts, quantisation_text

    plan, outcome = done.plan, done.outcome
    for note in plan.notes:
        console.warn(note)
    total = sum(outcome.saturated.values())
    if total:
        name = max(outcome.saturated, key=lambda key: outcome.saturated[key])
        console.warn(
            f"{total} values in {len(outcome.saturated)} tensors were too large for the type and became its largest (most in {name})"
        )
    for name in sorted(outcome.equal_to):
        console.warn(f"the result is equal to `{name}`: the merge changed nothing")
    count = sum(len(file.tensors) for file in plan.files)
    size = sum(file.size for file in plan.files)
    actions = ", ".join(f"{number} {label}" for label, number in plan.count_actions(plan.jobs).items())
    hashed = f", sha256 {done.sha256}" if done.sha256 else ""
    console.data(
        f"done   {count} tensors, {bytes_text(size)} in {duration_text(outcome.seconds)} ({actions}){hashed}\n       {done.path}"
        + (f", report {report}" if report else "")
        + (f"\n{lost}" if (lost := quantisation_text(done)) else ""),
        {
            "output": str(done.path), "tensors": count, "bytes": size, "seconds": round(outcome.seconds, 3), "formula": plan.formula,
            "actions": plan.count_actions(plan.jobs), "saturated": outcome.saturated, "equal_to": sorted(outcome.equal_to),
            "inputs": done.hashes, "sha256": done.sha256, "notes": list(plan.notes), "report": str(report) if report else None,
            "quantisation": quantisation_facts(done),
        },
    )  # fmt: skip
