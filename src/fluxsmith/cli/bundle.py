"""`fluxsmith bundle`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fluxsmith.cli.options import run_options, settings_from, talk_options
from fluxsmith.errors import UsageError

if TYPE_CHECKING:
    from fluxsmith.cli.console import Console

__all__ = ["bundle_and_show", "command"]


@click.command("bundle")
@click.argument("parts", metavar="[FOLDER | NAME=FILE ...]", nargs=-1)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The all-in-one file, ending in .safetensors.")
@click.option("--transformer", metavar="FILE|FOLDER|REF", help="The transformer.")
@click.option("--clip-l", metavar="FILE|FOLDER|REF", help="The text encoder CLIP-L.")
@click.option("--t5", metavar="FILE|FOLDER|REF", help="The text encoder T5.")
@click.option("--vae", metavar="FILE|FOLDER|REF", help="The VAE.")
@run_options
@talk_options
def command(**arguments: Any) -> None:
    """Put components into one file in the layout of their family; the reverse of `split`.

    Other components are named NAME=FILE: unet=, clip_g=, and rest= for keys of no component. What has the names of the
    all-in-one file is copied byte for byte; a transformer or VAE in diffusers' names is renamed, its values stay. A
    FOLDER is a pipeline of FLUX.1, whose components stand in its folders.

    \b
    fluxsmith bundle -o all.safetensors --transformer flux1-dev.safetensors --clip-l clip_l.safetensors \\
        --t5 t5xxl.safetensors --vae ae.safetensors
    fluxsmith bundle ./FLUX.1-dev -o all.safetensors --vae better-ae.safetensors
    """
    a = arguments
    given = {name: a[name] for name in ("transformer", "clip_l", "t5", "vae") if a[name]}
    bundle_and_show(_named(a["parts"], given), arguments)


def bundle_and_show(files: dict[str, str], arguments: dict[str, Any]) -> None:
    """Bundle these components (component -> reference) with the options of the command line."""
    from fluxsmith.cli.running import run_and_show
    from fluxsmith.engine.bundling import bundle_recipe
    from fluxsmith.engine.merging import opener

    a = arguments
    console: Console = a["console"]
    if a["output"].suffix != ".safetensors":
        fix = f"-o {a['output'].with_suffix('.safetensors')}"
        raise UsageError("usage.needs-a-file", f"a bundle is one .safetensors file, {a['output']} is none", fix=fix)
    recipe = bundle_recipe(files, opener(download=False, allow_pickle=a["allow_pickle"]))
    run_and_show(
        recipe, a["output"], settings_from(a["device"], a["threads"], a["memory"], a["allow_nonfinite"]), console,
        verb="bundle", resume=a["resume"], force=a["force"], allow_pickle=a["allow_pickle"], sha256=a["sha256"], report=False,
    )  # fmt: skip


def _named(parts: Sequence[str], given: dict[str, str]) -> dict[str, str]:
    """Component -> reference: of a pipeline's folder, then of pairs and options, which take the place of the folder's."""
    from fluxsmith.engine.bundling import pipeline_files

    found: dict[str, str] = {}
    for part in parts:
        name, equals, reference = part.partition("=")
        if not equals and not found:
            found = pipeline_files(Path(part))
            if not found:
                fix = f"fluxsmith convert {part} -o FILE.safetensors --bundle"
                raise UsageError("usage.no-pipeline", f"{part} is no pipeline of FLUX.1", fix=fix)
        elif not equals:
            raise UsageError("usage.bad-part", f"`{part}` is no NAME=FILE", fix="give one pipeline's folder, and pairs such as clip_g=FILE")
        elif given.setdefault(name, reference) != reference:
            facts = {"one": given[name], "other": reference}
            raise UsageError("usage.given-twice", f"two files are given for {name}", facts=facts, fix=f"leave one {name} out")
    return {**found, **given}
