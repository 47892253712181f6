"""`fluxsmith bench`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from fluxsmith.cli.console import Console, duration_text
from fluxsmith.cli.options import talk_options

__all__ = ["command"]


@click.group("bench")
def command() -> None:
    """Tables, measured on this machine.

    \b
    fluxsmith bench methods
    fluxsmith bench methods --quick --methods ties,task_arithmetic -o /tmp/bench
    """


@command.command("methods")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), default=Path("docs"), show_default=True, help="Folder.")
@click.option("--methods", metavar="A,B", default="", help="Only these merge methods (fluxsmith list methods).")
@click.option("--parents", metavar="A,B", default="", help="Merge these pocket fine-tunes, such as framed,faint,swapped.")
@click.option("--quick", is_flag=True, help="Few images and trials: to see that it runs.")
@click.option("--force", is_flag=True, help="Replace a table that exists.")
@talk_options
def methods(output: Path, methods: str, parents: str, quick: bool, force: bool, console: Console) -> None:
    """Merge pocket fine-tunes by every method and score every skill of every child.

    Writes methods-table.md and images/methods.png. Scores are kept in methods-scores.jsonl beside them: a run that was
    stopped goes on with the same command, and a new method costs only its own scores.

    \b
    fluxsmith bench methods
    fluxsmith bench methods --methods ties,dare_ties --parents framed,faint,swapped -o /tmp/bench
    """
    from fluxsmith.errors import Interrupted, UsageError
    from fluxsmith.reports.methods_bench.bench import TUNED, run_bench
    from fluxsmith.reports.methods_bench.heat_map import check_drawable, save_heat_map
    from fluxsmith.reports.methods_bench.table import methods_page

    page, picture = output / "methods-table.md", output / "images" / "methods.png"
    if page.exists() and not force:
        raise UsageError("output.exists", f"{page} exists", fix="--force replaces it, or give another folder with -o")
    check_drawable()
    try:
        bench = run_bench(
            output / "methods-scores.jsonl", console.talk, methods=_names(methods), tuned=_names(parents) or TUNED, quick=quick
        )
    except KeyboardInterrupt:
        raise Interrupted("run.stopped", "stopped; the scores so far are kept", fix="the same command goes on") from None
    picture.parent.mkdir(parents=True, exist_ok=True)
    save_heat_map(picture, bench)
    page.write_text(methods_page(bench, "images/methods.png", _again(methods, parents, quick)), encoding="utf-8")
    rows = [
        {"name": r.name, "kind": r.kind, "options": dict(r.record.options), "accuracy": dict(r.record.accuracy), "mean": r.record.mean}
        for r in [*bench.references, *bench.rows]
    ]
    console.data(
        f"done    {len(rows)} rows; merging and scoring took {duration_text(bench.seconds)}\n        {page}\n        {picture}",
        {"rows": rows, "skipped": bench.skipped, "failed": bench.failed, "seconds": round(bench.seconds, 1)},
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _again(methods: str, parents: str, quick: bool) -> str:
    """The command that makes the page."""
    chosen = {"--methods": methods, "--parents": parents}
    words = [word for flag, value in chosen.items() if value for word in (flag, value)]
    return shlex.join(["fluxsmith", "bench", "methods", *words, *(["--quick"] if quick else [])])
