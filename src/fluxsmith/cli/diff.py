"""`fluxsmith diff`."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fluxsmith.cli.console import Console, bytes_text, duration_text, table
from fluxsmith.cli.options import talk_options
from fluxsmith.io.dtypes import DTYPES

if TYPE_CHECKING:
    from fluxsmith.analysis.difference import Difference, Side, Sums

__all__ = ["ReadingDisplay", "command", "shortened"]

_BAR = 24  # characters of the longest bar
_SHOWN = 8  # names of a long list, without -v
_TOP = 5
_EVERY = 30.0  # seconds between two lines where there is no terminal


@click.command("diff")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--by", type=click.Choice(["block", "tensor"]), default="block", show_default=True, help="One line per block or per tensor.")
@click.option("--top", type=click.IntRange(min=0), help="Only the N tensors that changed most (--by block: listed below, default 5).")
@click.option("--html", "page", type=click.Path(path_type=Path, dir_okay=False), metavar="F", help="Write a page with a map of the blocks.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads (default: one per core, at most 16).")
@click.option("--allow-pickle", is_flag=True, help="Read .ckpt/.pt/.bin files (tensors only, nothing is run).")
@talk_options
def command(a: str, b: str, by: str, top: int | None, page: Path | None, threads: int | None, allow_pickle: bool, console: Console) -> None:
    """Compare two checkpoints, block by block, whatever their layouts.

    \b
    fluxsmith diff flux1-dev.safetensors black-forest-labs/FLUX.1-Krea-dev
    fluxsmith diff base.safetensors merged/ --by tensor --top 20
    fluxsmith diff base.safetensors merged/ --html changes.html

    change is ||A - B|| / ||A||, cosine that of the angle between A and B; signs is the share of elements whose sign
    is opposite, changed the share that differs at all.
    """
    from fluxsmith.analysis.difference import compare
    from fluxsmith.engine.streaming import Settings
    from fluxsmith.reports.diff_page import diff_page
    from fluxsmith.reports.style import write_page

    with ReadingDisplay(console, "diff") as display:
        found = compare(a, b, settings=Settings(threads), allow_pickle=allow_pickle, progress=display.advanced)
    if page is not None:
        write_page(page, diff_page(found))
        console.talk(f"page  {page}")
    facts = found.as_dict()
    facts["top"] = [tensor.name for tensor in found.top(_TOP if top is None else top)]
    if by == "block":
        del facts["tensors"]
    elif top is not None:
        chosen = {name: i for i, name in enumerate(facts["top"])}
        facts["tensors"] = sorted((t for t in facts["tensors"] if t["name"] in chosen), key=lambda t: chosen[t["name"]])
    console.data(_text(found, by, top, console.verbose), facts)


class ReadingDisplay:
    """How far a long reading is: one line that changes on a terminal, a line every half minute elsewhere, events with
    `--json`. Use as a context manager around the call that reads.
    """

    def __init__(self, console: Console, verb: str) -> None:
        self._console, self._verb = console, verb
        self._terminal = sys.stderr.isatty() and not console.quiet and not console.as_json
        self._lock = threading.Lock()
        self._begin = self._last = 0.0

    def __enter__(self) -> ReadingDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def advanced(self, done: int, total: int, where: str) -> None:
        """`done` of `total` bytes are read; called from several threads."""
        with self._lock:
            now = time.monotonic()
            if not self._begin:
                self._begin = self._last = now
            if now - self._last < (0.12 if self._terminal else 1.0 if self._console.as_json else _EVERY):
                return
            self._last = now
            if self._terminal:
                print(f"\r\x1b[K{self._line(done, total, where)}", end="", file=sys.stderr, flush=True)
            elif self._console.as_json:
                event = {"t": round(time.time(), 3), "stage": self._verb, "done": done, "total": total}
                print(json.dumps(event), file=sys.stderr, flush=True)
            else:
                self._console.talk(self._line(done, total, where))

    def _line(self, done: int, total: int, where: str) -> str:
        rate = done / max(time.monotonic() - self._begin, 1e-6)
        left = duration_text((total - done) / rate) if rate else "-"
        share = done / max(total, 1)
        drawing = f"{'█' * round(share * 20):░<20} " if self._terminal else ""
        amount = f"{bytes_text(done)} of {bytes_text(total)}  {bytes_text(int(rate))}/s"
        return f"{self._verb}  {drawing}{share:4.0%}  {amount}  left {left}  {where[:40]}"


def _text(found: Difference, by: str, top: int | None, verbose: bool) -> str:
    sections = [table([("A", *_side(found.a)), ("B", *_side(found.b))])]
    if found.identical:
        return "\n\n".join([*sections, f"identical: all {len(found.tensors)} tensors have equal values"])
    if found.total.changed:
        if by == "block":
            sections += [_rows("block", list(found.blocks.items())), _top(found, _TOP if top is None else top)]
        else:
            tensors = found.tensors if top is None else found.top(top)
            sections.append(_rows("tensor", [(tensor.name, tensor.sums) for tensor in tensors]))
    sections += [_apart(found, verbose), _total(found)]
    return "\n\n".join(section for section in sections if section)


def _side(side: Side) -> tuple[str, ...]:
    types = "+".join(DTYPES[name].short if name in DTYPES else name for name in side.dtypes)
    return side.reference, side.family, side.layout, types, f"{side.tensors} tensors", f"{side.parameters:,} parameters"


def _rows(what: str, rows: Sequence[tuple[str, Sums]]) -> str:
    longest = max((sums.relative for _, sums in rows if math.isfinite(sums.relative)), default=0.0)
    cells = [(name, _percent(sums.relative), bar(sums.relative, longest), *_shares(sums)) for name, sums in rows]
    header: tuple[str, ...] = (what, "change", "", "cosine", "signs", "changed")
    if any(sums.nonfinite for _, sums in rows):
        header += ("not finite",)
        cells = [(*row, f"{sums.nonfinite:,}") for row, (_, sums) in zip(cells, rows, strict=True)]
    return table(cells, header)


def _shares(sums: Sums) -> tuple[str, str, str]:
    cosine = "-" if sums.cosine is None else f"{sums.cosine:.6f}"
    return cosine, _percent(sums.conflict_share), _percent(sums.changed_share)


def bar(value: float, longest: float) -> str:
    """A bar of eighths of blocks; something is seen of every value above zero."""
    share = min(value / longest, 1.0) if longest else float(value > 0)
    eighths = max(round(share * _BAR * 8), int(value > 0))
    full, rest = divmod(eighths, 8)
    return ("█" * full + " ▏▎▍▌▋▊▉"[rest].strip()).ljust(_BAR)


def _top(found: Difference, count: int) -> str:
    rows = [("  " + t.name, _percent(t.sums.relative), "x".join(map(str, t.shape))) for t in found.top(count)]
    return "most changed tensors\n" + table(rows) if rows else ""


def _apart(found: Difference, verbose: bool) -> str:
    """What could not be compared, by name."""
    shapes = [f"{name}  {list(a)} and {list(b)}" for name, (a, b) in found.other_shapes.items()]
    lists = (("only in A", found.only_in_a), ("only in B", found.only_in_b), ("other shapes", shapes), ("not numbers", found.unread))
    lines: list[str] = []
    for label, names in lists:
        if names:
            lines += [f"{label} ({len(names)})", *(f"  {name}" for name in shortened(names, verbose))]
    return "\n".join(lines)


def shortened(names: Sequence[str], verbose: bool) -> list[str]:
    """The first few of many names and how many more there are; all of them with -v."""
    if verbose or len(names) <= _SHOWN + 1:
        return list(names)
    return [*names[:_SHOWN], f"... and {len(names) - _SHOWN} more (-v shows all)"]


def _total(found: Difference) -> str:
    total, count = found.total, len(found.tensors)
    if not total.changed:
        return f"total  the {count} tensors that both have are equal"
    cosine, signs, changed = _shares(total)
    text = (
        f"total  change {_percent(total.relative)}, cosine {cosine}, {signs} of signs opposite, "
        f"{changed} of {total.count:,} elements changed; {found.equal_tensors} of {count} tensors equal"
    )
    return text + (f"\n       {total.nonfinite:,} elements are not finite and left out" if total.nonfinite else "")


def _percent(share: float) -> str:
    if not math.isfinite(share):
        return "inf"
    value = 100 * share
    return "0%" if value == 0 else f"{value:.2f}%" if value >= 0.005 else f"{value:.0e}%"
