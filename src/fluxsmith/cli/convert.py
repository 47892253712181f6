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
@click.option("--bundle", is_flag=True, help="Put all components of a pipeline's folder into one file (see fluxsmith bundle).")
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
    fluxsmith convert ./FLUX.1-dev -o all.safetensors --bundle
    """
    from fluxsmith.cli.running import run_and_show
    from fluxsmith.recipes.expressions import model
    from fluxsmith.recipes.recipe import Guidance, Recipe

    a = arguments
    if a["bundle"] and _bundled(a):
        return
    parts = ("transformer",) if a["transformer_only"] else ()
    source = model(a["reference"], components=parts)
    guidance = Guidance.parse(a["guidance"]) if a["guidance"] else None
    layout = "comfy" if a["bundle"] else a["layout"]
    recipe = with_options(Recipe(source, guidance=guidance, title=source.name), layout, a["dtype"], a["shard_size"], a["unquantised"])
    run_and_show(
        recipe, a["output"], settings_from(a["device"], a["threads"], a["memory"], a["allow_nonfinite"]), a["console"],
        verb="convert", resume=a["resume"], force=a["force"], allow_pickle=a["allow_pickle"], sha256=a["sha256"], report=False,
    )  # fmt: skip


def _bundled(a: dict[str, Any]) -> bool:
    """Whether the reference was a pipeline of FLUX.1, which is now bundled; other pipelines are read as one model anyway.

    Raises UsageError where another layout or type is asked for: what is bundled is stored as it was.
    """
    from fluxsmith.cli.bundle import bundle_and_show
    from fluxsmith.engine.bundling import pipeline_files
    from fluxsmith.errors import UsageError

    other = next((name for name in ("layout", "dtype", "guidance", "transformer_only", "unquantised") if a[name]), None)
    if other is not None:
        option = f"--{other.replace('_', '-')}"
        raise UsageError("usage.bundle-and-option", f"--bundle keeps everything as it is, {option} changes it", fix=f"leave {option} out")
    folder = Path(a["reference"])
    if not folder.is_dir():
        raise UsageError("usage.no-pipeline", f"{folder} is no folder of a pipeline", fix="fluxsmith bundle puts files together")
    files = pipeline_files(folder)
    if files:
        bundle_and_show(files, a)
    return bool(files)
