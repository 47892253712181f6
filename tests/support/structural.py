"""Recipes on state dicts of a few tensors, run through the engine without files."""

from collections.abc import Mapping

from torch import Tensor

from fluxsmith.engine.execution import Settings
from fluxsmith.engine.in_memory import load_state_dict
from fluxsmith.recipes.expressions import Expression, Model, state_dict
from fluxsmith.recipes.recipe import Recipe

__all__ = ["as_models", "merged"]


def as_models(**dicts: Mapping[str, Tensor]) -> list[Model]:
    """State dicts as models of a recipe."""
    return [state_dict(dict(tensors), name=name) for name, tensors in dicts.items()]


def merged(wish: Expression, *, seed: int = 0, threads: int = 1) -> dict[str, Tensor]:
    """The tensors of a wish over structural models."""
    return load_state_dict(Recipe(wish, structural=True, seed=seed), Settings(threads))[0]
