"""docs/benchmarks.md: what is to hold and what was measured, the other programs, all runs, and how it was done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from benchmarks.bench import Line, Row
from benchmarks.measure import Runs
from benchmarks.notes import why

__all__ = ["Report", "document"]

_INTRODUCTION = """# Benchmarks

Written by `make bench` (`{command}`) on {date}.

Machine: {machine}.
Versions: {versions}.
Models: {models}.
"""

_TINY = "**A run on a tiny shape: it tests the benchmark itself; its times and ratios mean nothing.**\n"

_METHOD = """## How it is measured

- Programs run in turn, each as a process of its own on the cores named above: its inputs are read into the page cache
  first; afterwards its output is removed and the disk is synced. A ratio is taken in every round; the table has the median.
- `cp` is `cp` of one input followed by `sync` of its copy, because an output of fluxsmith is on the disk when it ends.
  The other programs end before theirs is, which is in their favour.
- The start of a program is its time for a merge of {tiny} parameters; it is taken off fluxsmith's and the other
  programs' times before ratios, not off `plan` and `--help`.
- Peak memory is the largest resident set that the kernel reports for the process. It counts pages of files that a
  program has mapped; "own" is what is not backed by files, looked at every 50 ms.
- "Equal elements" compares whole outputs element by element as bf16.
- Weights are random: a base of N(0, 0.02) and fine-tunes with N(0, 0.002) added. The 12 B files are sparse (all zero).
- To measure MergeFlux too: `python -m benchmarks --mergeflux CHECKOUT`.
"""


@dataclass(frozen=True)
class Report:
    """Everything that one run of the benchmark found."""

    command: str
    machine: str
    versions: str
    models: str
    tiny: str
    rows: Sequence[Row]
    lines: Sequence[Line]
    runs: Mapping[str, Runs]
    quick: bool = False


def document(report: Report) -> str:
    """The page."""
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    head = _INTRODUCTION.format(command=report.command, date=date, machine=report.machine, versions=report.versions, models=report.models)
    parts = [head, *([_TINY] if report.quick else []), "## Numbers to hold\n", _rows(report.rows)]
    if report.lines:
        parts += ["## The same merge by other programs\n", _lines(report.lines)]
    parts += [_METHOD.format(tiny=report.tiny), "## All runs\n", _runs(report.runs)]
    return "\n".join(parts)


def _rows(rows: Sequence[Row]) -> str:
    verdict = {True: "yes", False: "**no**", None: ""}
    body = [
        (row.what, row.hold, row.measured, verdict[row.reached], row.note or (why(row.what) if row.reached is False else ""))
        for row in rows
    ]
    return _markdown(("what", "hold", "measured", "reached", "note"), body)


def _lines(lines: Sequence[Line]) -> str:
    head = ("program", "wall", "of it start", "peak RSS", "own", "fluxsmith is faster by", "elements equal to fluxsmith's")
    body = [
        (x.program, f"{x.wall:.1f} s", f"{x.start:.1f} s", _gigabytes(x.peak), _gigabytes(x.anonymous), x.times, x.equal) for x in lines
    ]
    return _markdown(head, body)


def _runs(runs: Mapping[str, Runs]) -> str:
    body = [
        (name, f"{found.wall:.2f} s", ", ".join(f"{s.wall:.2f}" for s in found.samples), f"{found.cpu:.1f} s", f"{found.peak / 1e6:.0f} MB")
        for name, found in runs.items()
    ]
    return _markdown(("run", "median", "all", "CPU time", "peak RSS"), body)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
