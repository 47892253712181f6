"""`fluxsmith merge`."""

from pathlib import Path
from typing import Any

import click

from fluxsmith.cli.options import output_options, read_wish, run_options, settings_from, talk_options, wish_options, with_options
from fluxsmith.cli.running import run_and_show

__all__ = ["command"]


@click.command("merge")
@wish_options
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="A folder, or one file ending in .safetensors or .gguf."
)
@output_options
@run_options
@click.option("--no-report", is_flag=True, help="Do not write OUTPUT.report.html (report.html in a folder).")
@talk_options
def command(**arguments: Any) -> None:
    """Merge checkpoints by a recipe file, a one-line formula or a preset.

    \b
    fluxsmith merge "0.7*dev + 0.3*krea" -m dev=flux1-dev.safetensors -m krea=./krea -o out.safetensors
    fluxsmith merge "ties(dev, krea, photo, density=0.4)" -m dev=... -m krea=... -m photo=... -o out
    fluxsmith merge recipe.yaml -o out --dtype bf16 --layout diffusers --shard-size 10GB
    fluxsmith merge --preset flux-krea-schnell -o merged/transformer

    Nothing at OUTPUT changes before everything is written and verified. Ctrl-C once stops and keeps what is done;
    the same command with --resume goes on.
    """
    a = arguments
    recipe = read_wish(a["wish"], a["models"], a["preset"], a["assign"], a["guidance"], a["seed"], a["components"], a["rest"])
    recipe = with_options(recipe, a["layout"], a["dtype"], a["shard_size"], a["unquantised"])
    settings = settings_from(a["device"], a["threads"], a["memory"], a["allow_nonfinite"])
    run_and_show(
        recipe, a["output"], settings, a["console"],
        resume=a["resume"], force=a["force"], allow_pickle=a["allow_pickle"], sha256=a["sha256"], report=not a["no_report"],
    )  # fmt: skip
