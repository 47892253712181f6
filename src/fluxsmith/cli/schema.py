"""`fluxsmith schema`."""

import json

import click

__all__ = ["command"]


@click.command("schema")
@click.argument("what", type=click.Choice(["recipe"]), default="recipe")
def command(what: str) -> None:
    """Print the JSON schema of a recipe, for editors that complete and check YAML.

    \b
    fluxsmith schema recipe > recipe.schema.json
    """
    from fluxsmith.recipes.schema import RecipeFile

    print(json.dumps(RecipeFile.model_json_schema(by_alias=True), indent=2))
