"""What the numbers say, in sentences: where a method helps, and where it does not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fluxsmith.pocket.digits import STYLES
from fluxsmith.reports.methods_bench.bench import Bench, Row
from fluxsmith.reports.methods_bench.scoring import standard_error
from fluxsmith.reports.methods_bench.settings import setting_text

__all__ = ["best_rows", "conflicts", "verdicts", "worst_skill"]

SIMPLE = "task_arithmetic"
"""The method that the others have to beat: a sum of deltas with one scale."""


def best_rows(bench: Bench) -> list[Row]:
    """One row for each method, at its best setting, the highest mean first."""
    best = {row.name: row for row in bench.rows}  # of two rows of a method the second is the best
    return sorted(best.values(), key=lambda row: -row.record.mean)


def conflicts(skills: Sequence[str]) -> list[str]:
    """The skills that are asked for with a word that another one is asked for with, too: no model can have both."""
    words = [STYLES[skill].word for skill in skills if skill in STYLES]
    return [skill for skill in skills if skill in STYLES and words.count(STYLES[skill].word) > 1]


def worst_skill(bench: Bench, row: Row) -> str:
    """The lowest skill among those that are in no conflict."""
    open_skills = [skill for skill in bench.skills if skill not in conflicts(bench.skills)]
    return min(open_skills, key=lambda skill: row.record.accuracy[skill])


def verdicts(bench: Bench) -> list[str]:
    """Sentences of Markdown about a finished bench."""
    rows = best_rows(bench)
    if not rows:
        return ["No method ran."]
    return [*_against_average(bench, rows), *_against_simple(bench, rows), *_search(bench), *_conflict(bench, rows), *_limits(bench, rows)]


def _against_average(bench: Bench, rows: Sequence[Row]) -> list[str]:
    average = bench.references[-1]
    useless = [row.name for row in rows if row.name != "linear" and not _better(row, average)]
    text = f"Plain averaging reaches {average.record.mean:.1%}, the base {bench.references[0].record.mean:.1%}."
    if not useless:
        return [f"{text} Every other method is better at its best setting by more than two standard errors."]
    return [f"{text} **No better than that at their best setting** (within two standard errors): {_names(useless)}."]


def _against_simple(bench: Bench, rows: Sequence[Row]) -> list[str]:
    simple = next((row for row in rows if row.name == SIMPLE), None)
    if simple is None:
        return []
    better = [row.name for row in rows if _better(row, simple)]
    worse = [row.name for row in rows if _better(simple, row)]
    same = [row.name for row in rows if row is not simple and row.name not in (*better, *worse)]
    text = f"A sum of deltas with one well chosen number (`{SIMPLE}`, {_setting(simple)}) reaches {simple.record.mean:.1%}."
    groups = {"Better by more than two standard errors": better, "Neither better nor worse": same, "Worse": worse}
    return [text + "".join(f" {label}: {_names(names)}." for label, names in groups.items())]


def _search(bench: Bench) -> list[str]:
    means = {(row.name, row.kind): row.record.mean for row in bench.rows}
    gains = {name: means[name, "best"] - mean for (name, kind), mean in means.items() if kind == "default" and (name, "best") in means}
    if not gains:
        return []
    name = max(gains, key=lambda n: gains[n])
    large = [n for n, gain in gains.items() if gain > 0.1]
    lost = [n for n, gain in gains.items() if gain < 0]
    text = f"The setting matters: a search gains more than 10 points for {len(large)} of {len(gains)} methods that it changes"
    text += f", most for `{name}` ({100 * gains[name]:+.0f} points)."
    return [text + (f" For {_names(lost)} what the search chose was no better on other seeds." if lost else "")]


def _conflict(bench: Bench, rows: Sequence[Row]) -> list[str]:
    pair = conflicts(bench.skills)
    if len(pair) < 2:
        return []
    both = max(rows, key=lambda row: min(row.record.accuracy[skill] for skill in pair))
    one = max(rows, key=lambda row: max(row.record.accuracy[skill] for skill in pair))
    shown = ", ".join(f"{skill} {both.record.accuracy[skill]:.0%}" for skill in pair)
    taken = max(pair, key=lambda skill: one.record.accuracy[skill])
    return [
        f"A conflict is not resolved by any method: {' and '.join(pair)} are asked for with one word. The most even child is that of "
        f"`{both.name}` ({shown}); the clearest choice is that of `{one.name}` ({taken} {one.record.accuracy[taken]:.0%})."
    ]


def _limits(bench: Bench, rows: Sequence[Row]) -> list[str]:
    parents = [max(row.record.accuracy[skill] for row in bench.references[1:-1]) for skill in bench.skills]
    return [
        f"A separate model for each skill would reach {sum(parents) / len(parents):.1%}; the best single child, of `{rows[0].name}`, "
        f"{rows[0].record.mean:.1%}."
    ]


def _better(row: Row, other: Row) -> bool:
    errors = [standard_error(r.record.accuracy, r.record.images) for r in (row, other)]
    return row.record.mean - other.record.mean > 2 * math.hypot(*errors)


def _setting(row: Row) -> str:
    return setting_text(row.record.options) or "default"


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"
