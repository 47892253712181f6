"""`fluxsmith plan`."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from fluxsmith.cli.options import output_options, read_wish, talk_options, wish_options, with_options

__all__ = ["command"]


@click.command("plan")
@wish_options
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where the result would go.")
@output_options
@click.option("--jobs", is_flag=True, help="With --json: every job, with the bytes it reads and writes.")
@click.option("--allow-pickle", is_flag=True, help="Read .ckpt/.pt/.bin files (tensors only, nothing is run).")
@talk_options
def command(**arguments: Any) -> None:
    """Show what a merge would do, from the headers of its inputs: nothing is downloaded or computed.

    \b
    fluxsmith plan "0.7*dev + 0.3*krea" -m dev=flux1-dev.safetensors -m krea=./krea
    fluxsmith plan recipe.yaml
    fluxsmith plan --preset flux-krea-schnell --json
    """
    from fluxsmith.engine.merging import opener
    from fluxsmith.engine.planning import make_plan
    from fluxsmith.reports.plan_text import plan_facts, plan_text

    a = arguments
    recipe = read_wish(a["wish"], a["models"], a["preset"], a["assign"], a["guidance"], a["seed"], a["components"], a["rest"])
    recipe = with_options(recipe, a["layout"], a["dtype"], a["shard_size"], a["unquantised"])
    target = a["output"] or (Path("merged") if recipe.output.shard_size else None)
    plan = make_plan(recipe, opener(download=False, allow_pickle=a["allow_pickle"]), output=target)
    facts = plan_facts(plan, a["output"], min(os.cpu_count() or 1, 16))
    if a["jobs"]:
        facts["plan"] = plan.as_dict()
    a["console"].data(plan_text(facts, _next_command(a["output"])), facts)


def _next_command(output: Path | None) -> str:
    words = sys.argv[1:]
    words = words[words.index("plan") + 1 :] if "plan" in words else []
    return shlex.join(["fluxsmith", "merge", *words]) + ("" if output else " -o OUT")
