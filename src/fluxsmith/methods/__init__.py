"""Merge mathematics: one file per method, pure functions of tiles, the paper in the docstring.

    base.py        what a method is: a function whose signature is its declaration
    statistics.py  what can be measured over whole tensors before a method runs
    masks.py       random masks keyed by seed, tensor and element
    trimming.py    parts that the sparse delta methods share

A new method is one file and one line in METHODS. None of these files imports torch when it is imported: a plan is
made without it.
"""

from fluxsmith.errors import RecipeError, did_you_mean
from fluxsmith.methods.base import Delta, Method, Weight, merge_method

__all__ = ["METHODS", "Delta", "Method", "Weight", "find_method", "merge_method", "register"]

METHODS: dict[str, Method] = {}


def register(method: Method) -> None:
    """Make a method known under its name; a later one of the same name takes its place."""
    METHODS[method.name] = method


def find_method(name: str) -> Method:
    """The method of that name; raises RecipeError where there is none."""
    if name not in METHODS:
        raise RecipeError(
            "recipe.unknown-method",
            f"`{name}` is not a merge method",
            hint=did_you_mean(name, METHODS),
            fix="fluxsmith list methods",
        )
    return METHODS[name]


# Importing a file registers its methods; the order is that of `fluxsmith list methods`.
from fluxsmith.methods import (  # noqa: E402
    add_difference,
    bake_guidance,
    combination,
    dare,
    delta_merge,
    linear,
    slerp,
    task_arithmetic,
    ties,
    weighted_sum,
)  # isort: skip

_ = (weighted_sum, linear, combination, slerp, add_difference, task_arithmetic, ties, dare, delta_merge, bake_guidance)
