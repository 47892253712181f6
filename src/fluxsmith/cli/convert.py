"""`fluxsmith convert`."""

from pathlib import Path
from typing import Any

import click

from fluxsmith.cli.options import output_options, run_options, settings_from, talk_options, with_options

__all__ = ["command"]


@click.command("convert")
@click.argument("reference", metavar="FILE|FOLDER|REF")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="A folder, or one file ending in .safetensors or .gguf."
)
@output_options
@click.option("--guidance", metavar="POLICY", help="Change the guidance layers: drop, zero or bake(3.5).")
@click.option("--transformer-only", is_flag=True, help="Take the transformer out of an all-in-one file, dropping the rest.")
@run_options
@talk_options
def command(**arguments: Any) -> None:
    """Write a checkpoint in another layout or type; without loss where the type stays, with a table of errors where it is quantised.

    \b
    fluxsmith convert flux1-dev.safetensors -o dev-diffusers --layout diffusers --shard-size 10GB
    fluxsmith convert ./transformer -o flux.safetensors --layout comfy
    fluxsmith convert flux1-dev.safetensors -o dev-fp8.safetensors --dtype fp8_scaled
    fluxsmith convert flux1-dev.safetensors -o dev-Q8_0.gguf --dtype q8_0
    fluxsmith convert old.ckpt -o new.safetensors --allow-pickle
    """
    from fluxsmith.cli.running import run_and_show
    from fluxsmith.recipes.expressions import model
    from fluxsmith.recipes.recipe import Guidance, Recipe

    a = arguments
    parts = ("transformer",) if a["transformer_only"] else ()
    source = model(a["reference"], components=parts)
    guidance = Guidance.parse(a["guidance"]) if a["guidance"] else None
    recipe = with_options(Recipe(source, guidance=guidance, title=source.name), a["layout"], a["dtype"], a["shard_size"], a["unquantised"])
    run_and_show(
        recipe, a["output"], settings_from(a["device"], a["threads"], a["memory"], a["allow_nonfinite"]), a["console"],
        verb="convert", resume=a["resume"], force=a["force"], allow_pickle=a["allow_pickle"], sha256=a["sha256"], report=False,
    )  # fmt: skip
