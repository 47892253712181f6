"""`fluxsmith new`."""

from pathlib import Path

import click

from fluxsmith.cli.console import Console
from fluxsmith.cli.options import talk_options
from fluxsmith.errors import UsageError

__all__ = ["command"]


@click.command("new")
@click.argument("what", type=click.Choice(["recipe"]), default="recipe")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("recipe.yaml"), show_default=True, help="Where to write it.")
@talk_options
def command(what: str, output: Path, console: Console) -> None:
    """Write a commented recipe to start from, with a schema beside it for editors.

    \b
    fluxsmith new recipe
    fluxsmith new recipe -o kreative.yaml
    """
    import json

    from fluxsmith.recipes.schema import RecipeFile

    if output.exists():
        raise UsageError("output.exists", f"{output} exists", fix="give another path with -o")
    template = Path(__file__).parent.parent / "recipes" / "template.yaml"
    output.write_text(template.read_text())
    schema = output.with_name("recipe.schema.json")
    schema.write_text(json.dumps(RecipeFile.model_json_schema(by_alias=True), indent=2) + "\n")
    console.data(f"wrote  {output} and {schema}\nnext   fluxsmith check {output}", {"recipe": str(output), "schema": str(schema)})
