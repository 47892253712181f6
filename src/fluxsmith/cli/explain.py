"""`fluxsmith explain`."""

from pathlib import Path
from typing import Any

import click

from fluxsmith.cli.options import output_options, read_wish, talk_options, wish_options, with_options

__all__ = ["command"]


@click.command("explain")
@wish_options
@click.argument("key")
@output_options
@talk_options
def command(**arguments: Any) -> None:
    """Tell the story of one tensor: which bytes of which files, which rule, which numbers, and where it goes.

    KEY is a canonical (BFL) name, or a name in the output.

    \b
    fluxsmith explain recipe.yaml double_blocks.3.img_attn.qkv.weight
    fluxsmith explain "0.5*a + 0.5*b" norm_out.linear.weight -m a=... -m b=... --layout diffusers
    """
    from fluxsmith.engine.merging import opener
    from fluxsmith.engine.planning import make_plan
    from fluxsmith.reports.story import find_jobs, tell

    a = arguments
    recipe = read_wish(a["wish"], a["models"], a["preset"], a["assign"], a["guidance"], a["seed"], a["components"], a["rest"])
    recipe = with_options(recipe, a["layout"], a["dtype"], a["shard_size"], a["unquantised"])
    plan = make_plan(recipe, opener(download=False), output=Path("merged") if recipe.output.shard_size else None)
    jobs = find_jobs(plan, a["key"])
    numbers = [plan.jobs.index(job) for job in jobs]
    story = "\n".join(line for job in jobs for line in tell(plan, job))
    a["console"].data(story, [plan.as_dict()["jobs"][i] for i in numbers])
