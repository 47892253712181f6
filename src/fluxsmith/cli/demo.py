"""`fluxsmith demo`."""

from pathlib import Path

import click

from fluxsmith.cli.console import Console
from fluxsmith.cli.options import talk_options

__all__ = ["command"]


@click.command("demo")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="Folder for the result.")
@click.option("--force", is_flag=True, help="Write into a folder that exists.")
@talk_options
def command(output: Path, force: bool, console: Console) -> None:
    """Merge two tiny FLUX checkpoints that ship with fluxsmith, sample before and after, and write a report.

    \b
    fluxsmith demo
    fluxsmith demo -o /tmp/demo --force
    """
    from fluxsmith.errors import UsageError

    if output.exists() and any(output.iterdir()) and not force:
        raise UsageError("output.exists", f"{output} exists", fix="--force writes into it, or give another folder with -o")
    try:
        import sklearn  # noqa: F401  # pyright: ignore[reportUnusedImport]
        from PIL import Image  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise UsageError("usage.missing-extra", f"{error.name} is not installed", fix="pip install 'fluxsmith[generate]'") from None
    from fluxsmith.reports.demo import run_demo

    demo = run_demo(output, console.talk)
    rows = {name: {skill: round(score.accuracy, 4) for skill, score in row.items()} for name, row in demo.scores.items()}
    console.data(
        f"done    {demo.seconds:.0f} s\n        {demo.page}\n        {demo.sheet}\nnext    open {demo.page} in a browser",
        {"scores": rows, "page": str(demo.page), "sheet": str(demo.sheet), "merged": str(demo.merged), "seconds": round(demo.seconds, 1)},
    )
