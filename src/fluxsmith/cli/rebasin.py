"""`fluxsmith rebasin`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from fluxsmith.cli.options import output_options, run_options, settings_from, talk_options, with_options
from fluxsmith.errors import UsageError

__all__ = ["command"]


@click.command("rebasin")
@click.argument("reference", metavar="A")
@click.option("--to", required=True, metavar="B", help="The model whose order is taken.")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="A folder, or one file ending in .safetensors or .gguf."
)
@output_options
@run_options
@talk_options
def command(**arguments: Any) -> None:
    """Put the units of FLUX.1 model A in the order in which they are nearest to B's (Git Re-Basin, weight matching).

    \b
    fluxsmith rebasin a.safetensors --to b.safetensors -o a-aligned.safetensors
    fluxsmith merge "0.5*a + 0.5*b" -m a=a-aligned.safetensors -m b=b.safetensors -o merged.safetensors

    Heads, dims of v inside of heads, and hidden units of MLPs and embedders change places; what A computes stays the
    same. It helps models that were trained apart; fine-tunes of one base are in one order already, and stay as they
    are. The orders are kept beside the output, in OUTPUT.orders.safetensors: `reproduce` needs them.
    """
    from fluxsmith.analysis.rebasin import match_checkpoints, reordered
    from fluxsmith.cli.diff import ReadingDisplay
    from fluxsmith.cli.running import run_and_show
    from fluxsmith.models.statistics_file import write_statistics

    a = arguments
    output: Path = a["output"]
    again = a["force"] or a["resume"]
    orders_file = output.with_name(f"{output.name.removesuffix('.safetensors')}.orders.safetensors")
    for path in (output, orders_file):
        if os.path.lexists(path) and not again:
            raise UsageError("output.exists", f"{path} exists", fix="--force replaces it, or give another path with -o")
    with ReadingDisplay(a["console"], "match") as display:
        orders = match_checkpoints(a["reference"], a["to"], progress=display.advanced)
    shapes = {name: tuple(order.shape) for name, order in orders.tensors.items()}
    source = {"fluxsmith.orders": f"{a['reference']} in the order of {a['to']}"}
    output.parent.mkdir(parents=True, exist_ok=True)
    write_statistics(orders_file, "orders", shapes, orders.tensors.items(), metadata=source, force=again)
    moved = sum(orders.moved.values())
    a["console"].talk(f"{moved} of {orders.units} units change places, in {sum(map(bool, orders.moved.values()))} layers")
    recipe = with_options(reordered(a["reference"], str(orders_file)), a["layout"], a["dtype"], a["shard_size"], a["unquantised"])
    run_and_show(
        recipe, output, settings_from(a["device"], a["threads"], a["memory"], a["allow_nonfinite"]), a["console"],
        verb="rebasin", resume=a["resume"], force=a["force"], allow_pickle=a["allow_pickle"], sha256=a["sha256"],
    )  # fmt: skip
