"""The methods table as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fluxsmith.pocket.checkpoints import LEARNED
from fluxsmith.pocket.digits import STYLES
from fluxsmith.pocket.score import judge_accuracy
from fluxsmith.reports.methods_bench.bench import Bench, Row
from fluxsmith.reports.methods_bench.scoring import standard_error
from fluxsmith.reports.methods_bench.settings import setting_text
from fluxsmith.reports.methods_bench.verdicts import verdicts, worst_skill

__all__ = ["methods_page"]

INTRODUCTION = """\
# What merging does

{count} checkpoints with {skills} skills are merged on their common base by every method, at its default and at the best setting that a
small search found, and every child is asked for every skill. The checkpoints are the pocket models that ship in the package: FLUX
transformers of 0.6 M parameters that draw handwritten digits, fine-tuned to obey one word each:
{parents}.

Made by `{command}`: {minutes} on one core. What holds here need not hold for
12 B parameters; the ranking of methods on your own models takes your own scores. But the arithmetic is the same.

![Heat map of all scores]({picture})

## What it shows

"""

READING = """\

## How to read it

- A cell is the share of {images} images ({steps} Euler steps, no classifier-free guidance, the same seeds in every row) that show the
  right digit in the right style. Its standard error is at most {cell:.1f} points, that of a mean at most {mean:.1f} points.
- The judges are support vector machines; on real test images they are right in {digit:.1%} (digit) and {style:.1%} (style) of cases.
- The base has seen inverted digits but not learned the word: it draws one now and then. All other styles are new to it.
- *plain kept* is the share of the base's plain accuracy that is left. *worst* is the lowest of the skills that are in no conflict.
- The best setting is found on {trial_images} other images for each skill, one option after another, with at most {trials} trials for a
  method; the values are in `src/fluxsmith/reports/methods_bench/settings.py`. Where no trial was better than the default there is one row.
- Random methods have seed 0. Children stay in float32.
"""


def methods_page(bench: Bench, picture: str, command: str) -> str:
    """The whole page; `picture` is the path of the heat map from the page."""
    judges = judge_accuracy()
    images, steps = bench.scoring.images, bench.scoring.steps
    mean = max(standard_error(row.record.accuracy, images) for row in [*bench.references, *bench.rows])
    text = INTRODUCTION.format(
        count=len(bench.tuned), skills=len(bench.skills) - 1, parents=", ".join(map(_parent, bench.tuned)), command=command,
        minutes=f"{bench.seconds / 60:.0f} minutes" if bench.seconds > 90 else f"{bench.seconds:.0f} seconds", picture=picture,
    )  # fmt: skip
    text += "".join(f"- {sentence}\n" for sentence in verdicts(bench))
    text += "\n## Before merging\n\n" + _table(bench, bench.references)
    text += "\n## Children\n\n" + _table(bench, sorted(bench.rows, key=lambda row: (-row.record.mean, row.name)))
    text += READING.format(
        images=images, steps=steps, cell=50 / images**0.5, mean=100 * mean, digit=judges.digit, style=judges.style,
        trial_images=bench.searched.images, trials=bench.trials,
    )  # fmt: skip
    text += "".join(f"- Not in the table: {names}: {reason}.\n" for reason, names in _by_reason(bench.skipped).items())
    return text + "".join(f"- Did not run: `{name}`: {message}\n" for name, message in bench.failed.items())


def _table(bench: Bench, rows: Sequence[Row]) -> str:
    head = ["method" if rows and rows[0].kind != "reference" else "model", "setting", *bench.skills, "mean", "plain kept", "worst"]
    lines = ["| " + " | ".join(head) + " |", "|---|---" + "|---:" * (len(head) - 3) + "|---|"]
    lines += ["| " + " | ".join(_cells(bench, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cells(bench: Bench, row: Row) -> list[str]:
    accuracy = row.record.accuracy
    kept = accuracy["plain"] / max(bench.references[0].record.accuracy["plain"], 1e-9)
    options = setting_text(row.record.options)
    setting = "" if row.kind == "reference" else f"{row.kind}: {options}" if options else row.kind
    worst = worst_skill(bench, row)
    skills = [f"{accuracy[skill]:.0%}" for skill in bench.skills]
    return [row.name, setting, *skills, f"**{row.record.mean:.1%}**", f"{kept:.0%}", f"{worst} {accuracy[worst]:.0%}"]


def _by_reason(skipped: Mapping[str, str]) -> dict[str, str]:
    grouped: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        grouped.setdefault(reason, []).append(f"`{name}`")
    return {reason: ", ".join(names) for reason, names in grouped.items()}


def _parent(name: str) -> str:
    return f"`{name}` (“{STYLES[LEARNED[name]].word}”)"
