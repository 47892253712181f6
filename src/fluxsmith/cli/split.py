"""`fluxsmith split`."""

from pathlib import Path
from typing import Any

import click

from fluxsmith.cli.options import run_options, settings_from, talk_options

__all__ = ["command"]


@click.command("split")
@click.argument("reference", metavar="FILE|REF")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="A folder; one file where there is one component.")
@click.option("--only", metavar="A,B", help="Only these components: transformer, clip_l, t5, vae, ...; rest for keys of none.")
@run_options
@talk_options
def command(**arguments: Any) -> None:
    """Take an all-in-one file apart: one file for every component, byte for byte, under the names of its own file.

    FLUX.1's become transformer.safetensors, clip_l.safetensors, t5xxl.safetensors and ae.safetensors. Types stay as they
    are, also fp8 with its scales. Keys that belong to no component stop it, until `--only` says what becomes of them.

    \b
    fluxsmith split flux1-dev-fp8.safetensors -o parts
    fluxsmith split all.safetensors -o ae.safetensors --only vae
    """
    from fluxsmith.cli.running import run_and_show
    from fluxsmith.engine.bundling import split_recipe

    a = arguments
    recipe = split_recipe(a["reference"], a["only"].split(",") if a["only"] else ())
    run_and_show(
        recipe, a["output"], settings_from(a["device"], a["threads"], a["memory"], a["allow_nonfinite"]), a["console"],
        verb="split", resume=a["resume"], force=a["force"], allow_pickle=a["allow_pickle"], sha256=a["sha256"], report=False,
    )  # fmt: skip
