"""`fluxsmith reproduce`."""

from pathlib import Path
from typing import Any

import click

from fluxsmith.cli.options import named_models, run_options, settings_from, talk_options

__all__ = ["command"]


@click.command("reproduce")
@click.argument("reference", metavar="FILE|FOLDER|REF")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Where to make it again.")
@click.option("-m", "--model", "models", multiple=True, metavar="NAME=REF", help="Where an input is now.")
@run_options
@talk_options
def command(**arguments: Any) -> None:
    """Make a checkpoint, or an extracted adapter, again from the recipe that it carries, after checking the hashes of its inputs.

    The result is compared with the original, byte for byte.

    \b
    fluxsmith reproduce merged.safetensors -o again.safetensors
    fluxsmith reproduce ./merged -o ./again -m krea=/other/disk/krea
    """
    from fluxsmith.cli.extract import run_extraction
    from fluxsmith.cli.running import run_and_show
    from fluxsmith.engine.extraction import recorded_wish
    from fluxsmith.engine.reproduction import check_inputs, recorded_recipe
    from fluxsmith.errors import IncompatibleError
    from fluxsmith.io.hashing import content_hash
    from fluxsmith.io.references import open_reference

    a = arguments
    original = open_reference(a["reference"], download=True)
    named = named_models(a["models"])
    recipe = recorded_recipe(original, named)
    compared = check_inputs(original, recipe)
    a["console"].talk(f"inputs  {compared} files have the recorded hashes")
    settings = settings_from(a["device"], a["threads"], a["memory"], a["allow_nonfinite"])
    wish = recorded_wish(original.metadata)
    if wish is not None:
        run_extraction(
            recipe, a["output"], wish, a["console"], settings=settings, resume=a["resume"], force=a["force"], allow_pickle=a["allow_pickle"]
        )
    else:
        run_and_show(
            recipe, a["output"], settings, a["console"], verb="reproduce", resume=a["resume"], force=a["force"],
            allow_pickle=a["allow_pickle"], sha256=a["sha256"], report=False,
        )  # fmt: skip
    again = open_reference(str(a["output"]), download=False)
    hashes = [[content_hash(file.path) for file in c.files] for c in (original, again)]
    if hashes[0] != hashes[1]:
        raise IncompatibleError(
            "reproduce.different",
            f"{a['output']} is not byte for byte {a['reference']}",
            facts={"expected": ", ".join(map(str, hashes[0])), "found": ", ".join(map(str, hashes[1]))},
            fix=f"fluxsmith diff {a['reference']} {a['output']} shows where",
        )
    a["console"].talk("same    byte for byte")
