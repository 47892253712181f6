"""The Python surface: what `import fluxsmith as fs` offers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxsmith.io.schemes import output_type
from fluxsmith.io.shards import parse_size
from fluxsmith.recipes.expressions import Expression, Model, as_expression, model
from fluxsmith.recipes.recipe import Guidance, Recipe
from fluxsmith.recipes.selectors import Selector

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel
    from torch import Tensor

    from fluxsmith.engine.merging import Merged
    from fluxsmith.engine.plan import Plan

__all__ = ["as_recipe", "bundle", "load", "load_recipe", "load_state_dict", "merge", "plan", "split"]


def as_recipe(
    wish: Recipe | Expression | str,
    *,
    layout: Any = None,
    dtype: str | None = None,
    shard_size: str | int | None = None,
    guidance: str | None = None,
    seed: int | None = None,
    unquantised: Sequence[str] = (),
    components: Sequence[str] = (),
    rest: Sequence[str | Model] | str | Model = (),
) -> Recipe:
    """A recipe from an expression, a reference or a recipe, with some of its options replaced.

    `dtype` names an element type (`bf16`) or a scheme by which weights are quantised (`fp8_scaled`), which leaves the
    tensors that match one of the selectors `unquantised` as they are. `components` are those that the merge makes, `rest` is a model (or
    several) of which all else is copied byte for byte.
    """
    recipe = wish if isinstance(wish, Recipe) else Recipe(as_expression(wish))
    size = parse_size(shard_size) if isinstance(shard_size, str) else shard_size
    selectors = tuple(map(Selector, unquantised)) or None
    recipe = recipe.with_output(layout=layout, dtype=output_type(dtype) if dtype else None, shard_size=size, unquantised=selectors)
    if guidance is not None:
        recipe = replace(recipe, guidance=Guidance.parse(guidance))
    if components:
        recipe = replace(recipe, components=tuple(components))
    if rest:
        given = (rest,) if isinstance(rest, (str, Model)) else rest
        recipe = replace(recipe, rest=tuple(model(m) if isinstance(m, str) else m for m in given))
    return recipe if seed is None else replace(recipe, seed=seed)


def plan(wish: Recipe | Expression | str, *, output: str | os.PathLike[str] | None = None, **options: Any) -> Plan:
    """Resolve a wish against the headers of its inputs; nothing is downloaded, nothing is computed.

    Options: layout, dtype, shard_size, guidance, seed, components, rest.
    """
    from fluxsmith.engine.merging import opener
    from fluxsmith.engine.planning import make_plan

    return make_plan(as_recipe(wish, **options), opener(download=False), output=Path(output) if output else None)


def merge(
    wish: Recipe | Expression | str,
    output: str | os.PathLike[str],
    *,
    threads: int | None = None,
    device: str = "cpu",
    memory: str | int | None = None,
    allow_nonfinite: bool = False,
    resume: bool = False,
    force: bool = False,
    **options: Any,
) -> Merged:
    """Merge into `output`: a folder, or one file where it ends in `.safetensors` or `.gguf`.

    Options: layout, dtype, unquantised, shard_size, guidance, seed, components, rest.
    """
    from fluxsmith.engine.execution import Settings
    from fluxsmith.engine.merging import merge as run
    from fluxsmith.reports.card import card_files

    limit = parse_size(memory) if isinstance(memory, str) else memory
    settings = Settings(threads, device, limit, allow_nonfinite)
    return run(as_recipe(wish, **options), Path(output), settings=settings, resume=resume, force=force, beside=card_files)


def load(wish: Recipe | Expression | str, *, dtype: str | None = None, **options: Any) -> FluxTransformer2DModel:
    """The result of a wish as a stock `FluxTransformer2DModel`; nothing is written to disk."""
    from fluxsmith.models.transformer import load_transformer

    return load_transformer(as_recipe(wish, **options), dtype=output_type(dtype) if dtype else None)


def load_state_dict(wish: Recipe | Expression | str, **options: Any) -> dict[str, Tensor]:
    """The tensors of a wish by name, in the layout of its first input; nothing is written to disk.

    Options: layout, dtype, guidance, seed.
    """
    from fluxsmith.engine.in_memory import load_state_dict as run

    return run(as_recipe(wish, **options))[0]


def split(reference: str, output: str | os.PathLike[str], *, only: Sequence[str] = (), force: bool = False) -> Merged:
    """Write every component of an all-in-one file (or `only` some) as a file of its own into a folder, byte for byte.

    Raises IncompatibleError where a key belongs to no component and `only` does not say what becomes of it.
    """
    from fluxsmith.engine.bundling import split_recipe

    return merge(split_recipe(reference, only), output, force=force)


def bundle(files: Mapping[str, str], output: str | os.PathLike[str], *, force: bool = False) -> Merged:
    """Put components' own files (transformer, clip_l, t5, vae, ... -> reference) into one file; the reverse of `split`.

    Raises IncompatibleError where a component is missing, or a file holds something else.
    """
    from fluxsmith.engine.bundling import bundle_recipe
    from fluxsmith.engine.merging import opener

    return merge(bundle_recipe(files, opener(download=False)), output, force=force)


def load_recipe(path: str | os.PathLike[str], **models: str) -> Recipe:
    """A recipe file, with some of its models replaced by name."""
    from fluxsmith.recipes.loading import load_recipe as read

    return read(Path(path), models=models)
