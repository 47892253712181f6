"""Recipes from files and to files, by suffix: `fs.recipes.load("a.yaml")`, `fs.recipes.save(recipe, "b.mecha")`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fluxsmith.errors import UsageError

if TYPE_CHECKING:
    from fluxsmith.recipes.expressions import Expression
    from fluxsmith.recipes.recipe import Recipe

__all__ = ["load", "save"]


def load(path: str | os.PathLike[str], **models: str) -> Recipe:
    """A recipe file (YAML, `.mecha`, mergekit's YAML), with some of its models replaced by name.

    Raises RecipeError with file, line and column.
    """
    from fluxsmith.recipes.loading import load_recipe

    return load_recipe(Path(path), models=models)


def save(recipe: Recipe | Expression, path: str | os.PathLike[str]) -> Path:
    """Write a recipe as YAML, or as sd-mecha's format where the path ends in `.mecha`; an older file is replaced.

    Raises RecipeError where a `.mecha` file cannot say something of it, UsageError for another suffix.
    """
    from fluxsmith.recipes.mecha_writing import recipe_to_mecha
    from fluxsmith.recipes.recipe import Recipe
    from fluxsmith.recipes.saving import recipe_to_text

    target = Path(path)
    writers = {".yaml": recipe_to_text, ".yml": recipe_to_text, ".mecha": recipe_to_mecha}
    if target.suffix not in writers:
        raise UsageError("usage.recipe-suffix", f"{target} is no recipe file", fix="end it in .yaml or .mecha")
    text = writers[target.suffix](recipe if isinstance(recipe, Recipe) else Recipe(recipe))
    target.write_text(text)
    return target
