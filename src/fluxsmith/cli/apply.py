"""`fluxsmith apply`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fluxsmith.cli.adapter_files import parts_from, weights_from
from fluxsmith.cli.options import output_options, run_options, settings_from, talk_options, with_options
from fluxsmith.cli.running import run_and_show

__all__ = ["command"]


@click.command("apply")
@click.argument("adapters", metavar="ADAPTER...", nargs=-1, required=True)
@click.option("-b", "--base", required=True, metavar="REF", help="The checkpoint that the adapters were trained on (or one of its kin).")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="A folder, or one file ending in .safetensors or .gguf."
)
@click.option(
    "-w", "--weight", "weights", type=float, multiple=True, help="Strength: one for all adapters, or one for each, in their order."
)
@click.option("--components", metavar="A,B", help="Use only these parts of the adapters (transformer, clip_l, ...), by rule.")
@click.option("--alpha", type=float, help="Alpha of modules for which neither the file nor its sidecar says one.")
@click.option("--ignore", multiple=True, metavar="GLOB", help="Leave out keys of the adapters that match, by rule.")
@output_options
@run_options
@click.option("--no-report", is_flag=True, help="Do not write OUTPUT.report.html (report.html in a folder).")
@talk_options
def command(**arguments: Any) -> None:
    """Bake adapters (LoRA, LoHa, LoKr, DoRA, OFT, ...) into a checkpoint.

    \b
    fluxsmith apply style.safetensors -b flux1-dev.safetensors -o styled.safetensors
    fluxsmith apply style.safetensors blurry.safetensors -b flux1-dev.safetensors -w 0.8 -w -0.3 -o out.safetensors
    fluxsmith apply ./peft-folder -b ./dev/transformer -o out --layout diffusers
    fluxsmith apply style.safetensors -b flux1-dev.safetensors -o out.safetensors --components transformer

    Deltas are exact in fp32 and added once, in any layout of the base. Every key of an adapter is used, left out by a
    rule, or an error. A recipe can do more: `base + 0.8*style` with a weight for each block.
    """
    from fluxsmith.recipes.expressions import Expression, adapter, model
    from fluxsmith.recipes.recipe import Recipe

    a = arguments
    parts = parts_from(a["components"])
    root: Expression = model(a["base"], name="base")
    for name, reference, weight in zip(_names(a["adapters"]), a["adapters"], weights_from(a["weights"], len(a["adapters"])), strict=True):
        root = root + weight * adapter(reference, name=name, components=parts, ignore=a["ignore"], alpha=a["alpha"])
    recipe = with_options(Recipe(root), a["layout"], a["dtype"], a["shard_size"], a["unquantised"])
    run_and_show(
        recipe, a["output"], settings_from(a["device"], a["threads"], a["memory"], a["allow_nonfinite"]), a["console"], verb="apply",
        resume=a["resume"], force=a["force"], allow_pickle=a["allow_pickle"], sha256=a["sha256"], report=not a["no_report"],
    )  # fmt: skip


def _names(references: Sequence[str]) -> list[str]:
    """Short names, told apart by a number where two would be one."""
    from fluxsmith.recipes.expressions import adapter

    found: list[str] = []
    for reference in references:
        name = adapter(reference).name
        found.append(next(n for n in (name, *(f"{name}_{i}" for i in range(2, len(references) + 2))) if n not in (*found, "base")))
    return found
