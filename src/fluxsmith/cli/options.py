"""Flags that several commands share, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fluxsmith.cli.console import Console
from fluxsmith.errors import UsageError
from fluxsmith.io.dtypes import WRITABLE
from fluxsmith.io.schemes import OUTPUT_TYPES, SCHEMES, output_type

if TYPE_CHECKING:
    from fluxsmith.engine.execution import Settings
    from fluxsmith.recipes.recipe import Recipe

__all__ = ["named_models", "output_options", "read_wish", "run_options", "settings_from", "talk_options", "wish_options", "with_options"]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _all(*decorators: Decorator) -> Decorator:
    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def talk_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--json`, `-q` and `-v`, given to the command as one Console called `console`."""

    @click.option("--json", "as_json", is_flag=True, help="Data as JSON on stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="Only errors and warnings.")
    @click.option("-v", "--verbose", is_flag=True, help="More detail.")
    def wrapped(as_json: bool, quiet: bool, verbose: bool, **arguments: Any) -> Any:
        return function(console=Console(as_json, quiet, verbose), **arguments)

    wrapped.__doc__ = function.__doc__
    for name in ("__name__", "__click_params__"):
        if hasattr(function, name):
            current = getattr(wrapped, name, [])
            setattr(wrapped, name, getattr(function, name) + current if name == "__click_params__" else getattr(function, name))
    return wrapped


wish_options = _all(
    click.argument("wish", metavar="RECIPE|FORMULA", required=False),
    click.option(
        "-m", "--model", "models", multiple=True, metavar="NAME=REF", help="A model of the formula, or in place of one of the recipe's."
    ),
    click.option("--preset", metavar="NAME", help="A recipe that ships with fluxsmith (fluxsmith list presets)."),
    click.option("--set", "assign", multiple=True, metavar="A.B=V", help="Change a field of the recipe."),
    click.option("--guidance", metavar="POLICY", help="Where inputs differ in guidance layers: keep, drop, zero, bake(3.5), from(NAME)."),
    click.option("--seed", type=int, help="Seed of random methods."),
    click.option("--components", metavar="A,B", help="Make only these parts of all-in-one files, such as transformer."),
    click.option(
        "--rest", multiple=True, metavar="NAME|REF", help="Copy what the merge does not make from this model as it is, byte for byte."
    ),
)

output_options = _all(
    click.option(
        "--layout",
        type=click.Choice(["bfl", "diffusers", "comfy", "ldm", "sgm"]),
        help="Names in the output (default: as the first input).",
    ),
    click.option(
        "--dtype",
        type=click.Choice(OUTPUT_TYPES, case_sensitive=False),
        metavar="TYPE",
        help=f"Type of the output (default: as the inputs). Plain: {', '.join(WRITABLE)}. Quantised: {', '.join(SCHEMES)}.",
    ),
    click.option(
        "--unquantised",
        multiple=True,
        metavar="SELECTOR",
        help="With a quantised type: what keeps the type of the inputs, such as double.0.",
    ),
    click.option("--shard-size", metavar="SIZE", help="Largest file of a folder, such as 10GB."),
)

run_options = _all(
    click.option(
        "--device", type=click.Choice(["cpu", "cuda", "npu", "mps", "auto"]), default="cpu", show_default=True, help="Where to compute."
    ),
    click.option("--threads", type=click.IntRange(min=1), help="Threads (default: one per core, at most 16)."),
    click.option("--memory", metavar="SIZE", help="Limit of memory, such as 2GB: fewer threads, or an error before the run."),
    click.option("--resume", is_flag=True, help="Go on with an interrupted run."),
    click.option("--force", is_flag=True, help="Replace an existing output."),
    click.option("--allow-nonfinite", is_flag=True, help="Let NaN and infinite values through."),
    click.option("--allow-pickle", is_flag=True, help="Read .ckpt/.pt/.bin files (tensors only, nothing is run)."),
    click.option("--sha256", is_flag=True, help="Write the sha256 of the tensor bytes into the header, too (ModelSpec's hash)."),
)


def read_wish(
    wish: str | None, models: Sequence[str], preset: str | None, assign: Sequence[str], guidance: str | None, seed: int | None,
    components: str | None = None, rest: Sequence[str] = (),
) -> Recipe:  # fmt: skip
    """The recipe that the shared arguments mean; raises UsageError where they contradict each other."""
    from fluxsmith.recipes.loading import load_preset, load_recipe, recipe_from_formula, with_rest
    from fluxsmith.recipes.recipe import Guidance

    named = named_models(models)
    if preset is not None:
        if wish is not None:
            raise UsageError("usage.preset-and-recipe", "give a preset or a recipe, not both")
        recipe = load_preset(preset, named, assign)
    elif wish is None:
        raise UsageError("usage.no-recipe", "give a recipe, a formula or --preset", fix="fluxsmith merge --help")
    elif wish.endswith((".yaml", ".yml", ".mecha")) or _is_file(wish):
        recipe = load_recipe(Path(wish), models=named, assign=assign)
    elif assign:
        raise UsageError("usage.set-on-formula", "--set changes a recipe file, not a formula")
    else:
        recipe = recipe_from_formula(wish, named, rest)
    if guidance is not None:
        recipe = replace(recipe, guidance=Guidance.parse(guidance))
    if components:
        recipe = replace(recipe, components=tuple(components.split(",")))
    if rest and not recipe.rest:
        recipe = with_rest(recipe, rest, {})
    return recipe if seed is None else replace(recipe, seed=seed)


def with_options(recipe: Recipe, layout: str | None, dtype: str | None, shard_size: str | None, unquantised: Sequence[str] = ()) -> Recipe:
    """The recipe with the output options of the command line."""
    from fluxsmith.io.shards import parse_size
    from fluxsmith.recipes.selectors import Selector

    return recipe.with_output(
        layout=layout,
        dtype=output_type(dtype) if dtype else None,
        shard_size=parse_size(shard_size) if shard_size else None,
        unquantised=tuple(map(Selector, unquantised)) or None,
    )


def settings_from(device: str, threads: int | None, memory: str | None, allow_nonfinite: bool) -> Settings:
    """The engine's settings that the shared flags mean."""
    from fluxsmith.engine.execution import Settings
    from fluxsmith.io.shards import parse_size

    return Settings(threads, device, parse_size(memory) if memory else None, allow_nonfinite)


def named_models(texts: Sequence[str]) -> dict[str, str]:
    """The references of all `-m NAME=REF`, by name; raises UsageError where one has another form or a name stands twice."""
    named: dict[str, str] = {}
    for name, reference in map(_named, texts):
        if name in named:
            raise UsageError("usage.bad-model", f"`-m {name}=...` is given twice", facts={"one": named[name], "other": reference})
        named[name] = reference
    return named


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:
        return False  # a formula that is too long to be a path


def _named(text: str) -> tuple[str, str]:
    name, equals, reference = text.partition("=")
    if not equals or not name.isidentifier() or not reference:
        raise UsageError("usage.bad-model", f"`-m {text}` is not NAME=REF", fix="-m dev=flux1-dev.safetensors")
    return name, reference
