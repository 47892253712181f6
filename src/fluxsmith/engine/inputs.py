"""The inputs of a recipe: opened by their headers, bound to their family's table, checked to fit together."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from fluxsmith.engine.programs import guidance_error
from fluxsmith.errors import IncompatibleError, RecipeError
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.memory import checkpoint_of
from fluxsmith.io.quantised import decoded
from fluxsmith.layouts import Bound, Table, known_tables, table_of
from fluxsmith.layouts.detection import open_model
from fluxsmith.layouts.ownership import Ownership, owners_of
from fluxsmith.layouts.standalone import COMPONENT_TABLES, adopted
from fluxsmith.layouts.structural import KEYWISE, bind_structural
from fluxsmith.recipes.expressions import Fallback, Model, walk
from fluxsmith.recipes.recipe import Recipe

__all__ = ["STATISTICS", "Opener", "adopt", "bind_input", "check_compatible", "weight_inputs"]

Opener = Callable[[str], Checkpoint]
#: The metadata key of a file of statistics (Fisher, RegMean): its tensors have canonical names and shapes of their own.
STATISTICS = "fluxsmith.statistics"


def bind_input(model: Model, recipe: Recipe, open_checkpoint: Opener) -> Bound:
    """An input of a recipe as views of canonical tensors; only headers are read.

    Raises IncompatibleError where it is no model, or has components that no rule of the recipe drops.
    """
    checkpoint = open_checkpoint(model.reference) if model.tensors is None else checkpoint_of(model, model.tensors, model.reference)
    if model.holds == "param":
        return _bind_params(checkpoint)
    if recipe.structural:
        return bind_structural(decoded(checkpoint), strip=recipe.strip)
    if model.components or recipe.components:
        owners = owners_of(checkpoint, model.components or recipe.components)
        return _bind_components(checkpoint, model.components or _made_of(owners, recipe), owners)
    bound = open_model(checkpoint, known_tables())
    if bound.extras:
        parts = ", ".join(bound.components)
        raise IncompatibleError(
            "model.other-components",
            f"{len(bound.extras)} of {len(checkpoint.tensors)} keys of {model.reference} belong to no {bound.family} {parts}",
            facts={"first": "\n".join(bound.extras[:10])},
            fix=f"to drop them by rule: `{model.name}: {{checkpoint: {model.reference}, components: [{parts}]}}` in a recipe",
        )
    return bound


def _made_of(owners: Ownership, recipe: Recipe) -> tuple[str, ...]:
    """Those components that the recipe makes which a file has, or all where it has none of them."""
    return tuple(name for name in recipe.components if name in owners.places) or recipe.components


def _bind_components(checkpoint: Checkpoint, components: Collection[str], owners: Ownership) -> Bound:
    """Some components of a checkpoint; how the others are stored is not asked."""
    first = next(iter(owners.places), None)
    if first not in components or owners.table is None:
        return open_model(checkpoint, known_tables(), components=components).only(components)
    kept = {key: view for key, view in checkpoint.tensors.items() if owners.component(key) in components or key in owners.table.marks}
    bound = open_model(replace(checkpoint, tensors=kept), known_tables(), components=components).only(components)
    rule = f"components: [{', '.join(components)}]"
    others = {key: owners.table.why_dropped(key) or rule for key in checkpoint.tensors if key not in kept}
    # The file has more tensors than were looked at: they are part of what is known of it.
    whole = replace(bound.checkpoint, tensors={key: checkpoint.tensors[key] for key in others} | dict(bound.checkpoint.tensors))
    return replace(bound, checkpoint=whole, dropped={**others, **bound.dropped})


def adopt(bounds: Mapping[str, Bound], table: Table | None) -> dict[str, Bound]:
    """The inputs with components' own files taken for components of the family that another input (or `table`) has."""
    families = (table_of(bound.family) for bound in bounds.values() if bound.family not in COMPONENT_TABLES)
    whole = table or next((found for found in families if found is not None), None)
    if whole is None:
        return dict(bounds)
    return {name: adopted(bound, whole) or bound if bound.family in COMPONENT_TABLES else bound for name, bound in bounds.items()}


def _bind_params(checkpoint: Checkpoint) -> Bound:
    """Numbers that are no weights: named as a model's tensors are in one of its layouts, or by canonical names."""
    return bind_structural(checkpoint) if STATISTICS in checkpoint.metadata else open_model(checkpoint, known_tables())


def weight_inputs(bounds: Mapping[str, Bound], recipe: Recipe) -> dict[str, Bound]:
    """The inputs that are models, without those that hold params (masks, importances)."""
    return {model.name: bounds[model.name] for model in recipe.models() if model.holds != "param"}


def check_compatible(bounds: Mapping[str, Bound], recipe: Recipe) -> Bound:
    """All inputs of one family and one size; the one with the most tensors is the pattern of the result."""
    bounds = weight_inputs(bounds, recipe)
    if not bounds:
        named = " + ".join(adapter.name for adapter in recipe.adapters())
        fix = (
            f"add them to one: base + {named}; adapters alone are for fluxsmith adapter merge"
            if named
            else "name a checkpoint: -m NAME=FILE"
        )
        what = f"the recipe names no model, only adapters: {named}" if named else "the recipe names no model"
        raise RecipeError("recipe.no-models", what, fix=fix)
    names = list(bounds)
    first = bounds[names[0]]
    for name in names[1:]:
        other = bounds[name]
        if other.family != first.family and not _unnamed(first, other):
            raise IncompatibleError(
                "model.mixed-families",
                f"{names[0]} is {first.family}, {name} is {other.family}: they have no weights in common",
                facts={names[0]: first.checkpoint.reference, name: other.checkpoint.reference},
                fix="merge checkpoints of one family",
            )
        _check_dims(names[0], first, name, other)
    transformers = [bound for bound in bounds.values() if "guidance" in bound.dims]
    with_guidance = [bound for bound in transformers if bound.dims["guidance"]]
    if with_guidance and len(with_guidance) < len(transformers) and recipe.guidance is None and not _answers_missing(recipe):
        raise guidance_error(bounds)
    return (with_guidance or transformers or [first])[0]


def _unnamed(a: Bound, b: Bound) -> bool:
    """Whether one is a checkpoint of transformers and the other a file without a config.json that says what it is."""
    return {a.layout, b.layout} == set(KEYWISE) and "structural" in (a.family, b.family)


def _answers_missing(recipe: Recipe) -> bool:
    """Whether the recipe says what to do where an input lacks a tensor."""
    roots = [recipe.root, *(rule.expression for rule in recipe.rules)]
    return recipe.missing != "error" or any(isinstance(node, Fallback) for root in roots for node in walk(root))


_MEANING = {
    "H": "width", "M": "width of the MLP", "D": "width of a head", "double": "double blocks", "single": "single blocks",
    "in": "input channels", "out": "output channels", "ctx": "width of the text embedding", "vec": "width of the pooled text embedding",
    "T": "width of the time embedding", "joint": "joint blocks", "dual": "blocks with a second attention", "qk_norm": "norms of q and k",
    "P": "positions", "C0": "width", "added": "width of the added embedding", "A": "width of the approximator",
    "clip_l.projects": "projections of CLIP",
}  # fmt: skip


def _check_dims(one: str, a: Bound, two: str, b: Bound) -> None:
    for symbol, value in a.dims.items():
        if symbol != "guidance" and b.dims.get(symbol, value) != value:
            raise IncompatibleError(
                "model.different-size",
                f"{one} and {two} differ in {_MEANING.get(symbol, symbol)}: {value} and {b.dims[symbol]}",
                facts={one: a.checkpoint.reference, two: b.checkpoint.reference},
                fix="merge checkpoints of one size and kind (Fill, Canny and Depth have other input channels)",
            )
