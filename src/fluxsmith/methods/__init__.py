"""Merge mathematics: one file per method, pure functions of tiles, the paper in the docstring.

    base.py        what a method is: a function whose signature is its declaration
    statistics.py  what can be measured over whole tensors before a method runs
    masks.py       random masks keyed by seed, tensor and element
    trimming.py    parts that the sparse delta methods share

A new method is one file and one line in METHODS. None of these files imports torch when it is imported: a plan is
made without it. Other packages add methods by an entry point of the group `fluxsmith.methods`, whose name is the
method's and whose value is the decorated function; they are imported when a recipe names them.
"""

from fluxsmith.entry_points import installed, load
from fluxsmith.errors import MethodError, RecipeError, UsageError, did_you_mean
from fluxsmith.methods.base import Delta, Method, Weight, merge_method

__all__ = ["METHODS", "Delta", "Method", "Weight", "find_method", "installed_methods", "merge_method", "register"]

GROUP = "fluxsmith.methods"
METHODS: dict[str, Method] = {}


def register(method: Method) -> None:
    """Make a method known under its name; a later one of the same name takes its place, but not that of one of ours.

    Raises UsageError there: recipes that name a built-in method would mean something else from then on.
    """
    known = METHODS.get(method.name)
    if known is not None and _is_built_in(known) and not _is_built_in(method):
        fix = "give the function another name, or @fs.merge_method(name=...)"
        raise UsageError("method.name-taken", f"`{method.name}` is a method of fluxsmith", fix=fix)
    METHODS[method.name] = method


def _is_built_in(method: Method) -> bool:
    return method.function.__module__.startswith(f"{__name__}.")


def find_method(name: str) -> Method:
    """The method of that name; raises RecipeError where there is none."""
    if name not in METHODS:
        _load_installed(name)
    if name not in METHODS:
        raise RecipeError(
            "recipe.unknown-method",
            f"`{name}` is not a merge method",
            hint=did_you_mean(name, [*METHODS, *installed_methods()]),
            fix="fluxsmith list methods",
        )
    return METHODS[name]


def installed_methods() -> dict[str, str]:
    """The methods of other installed packages: name -> `module:function`; none of them is imported."""
    return {entry.name: entry.value for entry in installed(GROUP)}


def _load_installed(name: str) -> None:
    """Import the method of another package; raises MethodError where that fails."""
    for entry in installed(GROUP, name):
        METHODS[name] = load(entry, Method, "method", "decorate it with @fs.merge_method", MethodError)


# Importing a file registers its methods; the order is that of `fluxsmith list methods`.
from fluxsmith.methods import (  # noqa: E402
    add_difference,
    arcee_fusion,
    bake_guidance,
    breadcrumbs,
    cast,
    clamp,
    combination,
    consensus,
    cosine,
    crossover,
    dare,
    della,
    delta_merge,
    difference_masks,
    dropout,
    ema,
    fisher,
    geometric_median,
    geometric_sum,
    isotropic,
    karcher,
    knots,
    linear,
    magmax,
    model_stock,
    multiply,
    multislerp,
    nearswap,
    nuslerp,
    pad_columns,
    pcb,
    perpendicular,
    ram,
    regmean,
    reindex,
    rotate,
    sce,
    slerp,
    slicing,
    subspace_boost,
    task_arithmetic,
    ties,
    transpose,
    truncation,
    tsv_merge,
    weighted_sum,
    wudi,
)  # isort: skip

_ = (tsv_merge, isotropic, wudi, subspace_boost, rotate, truncation, fisher, regmean, reindex, knots)
_ = (weighted_sum, linear, combination, slerp, add_difference, task_arithmetic, ties, dare, delta_merge, bake_guidance)
_ = (transpose, pad_columns)
_ = (arcee_fusion, breadcrumbs, cast, clamp, consensus, cosine, crossover, della, difference_masks)
_ = (dropout, ema, geometric_median, geometric_sum, karcher, magmax, model_stock, multiply, multislerp)
_ = (nearswap, nuslerp, pcb, perpendicular, ram, sce, slicing)
