"""`fluxsmith check`."""

from pathlib import Path

import click

from fluxsmith.cli.console import Console
from fluxsmith.cli.options import talk_options

__all__ = ["command"]


@click.command("check")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-m", "--model", "models", multiple=True, metavar="NAME=REF", help="In place of one of the recipe's models.")
@click.option("--schema-only", is_flag=True, help="Do not open the inputs.")
@talk_options
def command(recipe: Path, models: tuple[str, ...], schema_only: bool, console: Console) -> None:
    """Check a recipe: fields, names and numbers at their lines, then the headers of its inputs.

    \b
    fluxsmith check recipe.yaml
    fluxsmith check recipe.yaml --schema-only
    """
    from fluxsmith.cli.options import read_wish

    wish = read_wish(str(recipe), models, None, (), None, None)
    named = {"models": [m.name for m in wish.models()], "adapters": [a.name for a in wish.adapters()]}
    facts: dict[str, object] = {"recipe": str(recipe), "ok": True, **named}
    adapters = f", {len(named['adapters'])} adapters" if named["adapters"] else ""
    text = f"ok     {recipe}: {len(named['models'])} models{adapters}"
    if not schema_only:
        from fluxsmith.engine.merging import opener
        from fluxsmith.engine.planning import make_plan

        plan = make_plan(wish, opener(download=False), output=Path("merged") if wish.output.shard_size else None)
        facts["actions"] = plan.count_actions(plan.jobs)
        text += f", {plan.family}, " + ", ".join(f"{n} {what}" for what, n in plan.count_actions(plan.jobs).items())
    console.data(text, facts)
