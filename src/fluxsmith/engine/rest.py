"""The rest of a checkpoint: what a merge does not make is copied as it is stored, byte for byte.

Nothing of it is decoded, so text encoders in fp8 with their scales, tensors of unknown names and whatever else stands in an
all-in-one file come through unchanged. A component's own file takes its place in the all-in-one file: its keys get the
prefix that the family's layout has for it.

Here the models are opened and the recipe is settled; copying.py makes the plan.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fluxsmith.engine.plan import REST
from fluxsmith.errors import IncompatibleError, RecipeError
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.memory import checkpoint_of
from fluxsmith.layouts import Table
from fluxsmith.layouts.ownership import Ownership, all_in_one_layout, fits, owners_of
from fluxsmith.recipes.expressions import Model, Nothing, walk
from fluxsmith.recipes.recipe import Recipe

__all__ = ["SEPARATE", "Source", "settled", "sources_of"]

Opener = Callable[[str], Checkpoint]
#: The layout in which every component is a file of its own.
SEPARATE = "separate"


@dataclass(frozen=True)
class Source:
    """A model whose rest is copied. `is_input` says whether the merge has it among its inputs, too."""

    model: Model
    checkpoint: Checkpoint
    owners: Ownership
    is_input: bool

    @property
    def name(self) -> str:
        return self.model.name

    def rule(self, made: Sequence[str]) -> str:
        """The rule by which the merge takes no more of it than it makes."""
        return f"components: [{', '.join(self.model.components or made)}]"

    def outcome(self, key: str, made: Sequence[str]) -> str:
        """What becomes of a key where the merge makes these components: `copied`, or why it is not."""
        owner, wanted = self.owners.component(key), () if self.is_input else self.model.components
        if owner in made:
            return f"not used (the merge makes the {owner})"
        if wanted and (owner or REST) not in wanted:
            return f"dropped (components: [{', '.join(wanted)}])"
        return "copied"


def sources_of(recipe: Recipe, open_checkpoint: Opener) -> tuple[Source, ...]:
    """The models whose rest a recipe copies, opened by their headers and not decoded.

    Raises IncompatibleError where a file is none that stores tensors as a safetensors file does.
    """
    used = {id(node) for root in (recipe.root, *(rule.expression for rule in recipe.rules)) for node in walk(root)}
    found: list[Source] = []
    for model in recipe.rest:
        checkpoint = _opened(model, open_checkpoint)
        coded = next((key for key, view in checkpoint.tensors.items() if any(extent.codec for extent in view.extents)), None)
        if coded is not None:
            raise IncompatibleError(
                "rest.not-safetensors",
                f"{model.reference} cannot be copied into a safetensors file as it is",
                facts={"file": model.reference, "key": coded},
                fix=f"fluxsmith convert {model.reference} -o FILE.safetensors --dtype bf16, and take that",
            )
        owners = owners_of(checkpoint, model.components)
        unknown = [name for name in model.components if name not in (*owners.places, REST)]
        if unknown:
            raise IncompatibleError(
                "model.no-component",
                f"{model.reference} has no {unknown[0]}",
                facts={"components": ", ".join(owners.places) or "none that is known"},
                fix="name components that the file has",
            )
        found.append(Source(model, checkpoint, owners, id(model) in used))
    return tuple(found)


def _opened(model: Model, open_checkpoint: Opener) -> Checkpoint:
    return open_checkpoint(model.reference) if model.tensors is None else checkpoint_of(model, model.tensors, model.reference)


def settled(recipe: Recipe, sources: Sequence[Source], open_checkpoint: Opener) -> tuple[Recipe, Table]:
    """The recipe with the components that it makes and the layout of its output said outright, and the family's table.

    Components are those that all inputs have, where the recipe names none. Raises IncompatibleError where nothing tells the
    family, or something cannot stand in its all-in-one file; RecipeError where another layout is asked for.
    """
    if recipe.structural:
        fix = "leave `structural: true` out, or the rest"
        raise RecipeError("rest.structural", "a merge key by key knows no components, so nothing tells what its rest is", fix=fix)
    copied_only = {id(source.model) for source in sources if not source.is_input}
    inputs = [model for model in recipe.models() if model.holds == "weight" and id(model) not in copied_only]
    owners = {model.name: owners_of(_opened(model, open_checkpoint), model.components) for model in inputs}
    everyone = {**owners, **{source.name: source.owners for source in sources}}
    table = next((found.table for found in everyone.values() if found.table is not None and not found.alone), None)
    if table is None:
        files = ", ".join(model.reference for model in recipe.models())
        raise IncompatibleError(
            "rest.no-family",
            f"none of {files} has a transformer or UNet of a known family, so nothing tells the places of the others",
            fix="name an all-in-one file, or the transformer's own file",
        )
    for source in sources:
        if not fits(table, source.owners):
            raise _misfit(source, table)
    layout = all_in_one_layout(table)
    asked = recipe.output.layout
    if asked not in (None, layout, SEPARATE) or (asked == SEPARATE and not isinstance(recipe.root, Nothing)):
        raise RecipeError(
            "rest.other-layout",
            f"the rest is copied as it is stored, in the {layout} layout; the output cannot be in the {asked} layout",
            fix="leave --layout out",
        )
    made = recipe.components or (() if isinstance(recipe.root, Nothing) else _common(inputs, owners, table))
    return replace(recipe, components=tuple(made), output=replace(recipe.output, layout=asked or layout)), table


def _common(inputs: Sequence[Model], owners: Mapping[str, Ownership], table: Table) -> list[str]:
    """The components that every input gives."""
    given = [m.components or tuple(owners[m.name].places) for m in inputs]
    common = [name for name in table.components if all(name in names for names in given)]
    if not common:
        raise IncompatibleError(
            "rest.nothing-in-common",
            "the inputs have no component in common, so it is not clear what the merge makes",
            facts={m.name: ", ".join(names) for m, names in zip(inputs, given, strict=True)},
            fix="say it: `components: [transformer]` in the merge, or --components transformer",
        )
    return common


def _misfit(source: Source, table: Table) -> IncompatibleError:
    owners = source.owners
    what = f"{owners.table.family} in the {owners.layout} layout" if owners.table else "unknown"
    if owners.table is table:
        fix = f"fluxsmith convert {source.model.reference} -o FILE.safetensors --layout {all_in_one_layout(table)}, and take that"
    elif owners.table and owners.table.family in table.components:
        fix = f"fluxsmith convert {source.model.reference} -o FILE.safetensors --layout {owners.table.layouts[0]}, and take that"
    else:
        fix = f"use files of {table.family}"
    return IncompatibleError(
        "rest.other-names",
        f"{source.model.reference} cannot stand in an all-in-one file of {table.family} under the names that it has",
        facts={"file": source.model.reference, "found": what, "expected": f"the {all_in_one_layout(table)} layout of {table.family}"},
        fix=fix,
    )
