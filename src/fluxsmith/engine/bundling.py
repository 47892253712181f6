"""All-in-one files taken apart and put together: recipes that only copy.

Components are found by their keys. What is named as the all-in-one file names it is copied as it is stored; what is named
otherwise (diffusers' transformers and VAEs) is renamed, and of fp8 with scales or GGUF the values are taken.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path

from fluxsmith.engine.plan import REST
from fluxsmith.engine.rest import SEPARATE
from fluxsmith.errors import IncompatibleError, UsageError
from fluxsmith.io.checkpoint import Checkpoint, LocalFolder, read_json
from fluxsmith.layouts import Table
from fluxsmith.layouts.ownership import Ownership, fits, owners_of
from fluxsmith.recipes.expressions import Expression, Model, Nothing, fallback
from fluxsmith.recipes.recipe import OutputOptions, Recipe

__all__ = ["bundle_recipe", "pipeline_files", "split_recipe"]

#: Components that published all-in-one files leave out.
_OPTIONAL = {"sd3": ("t5",)}
#: The folders of a FLUX.1 pipeline and the components that they hold.
_FOLDERS = {"transformer": "transformer", "text_encoder": "clip_l", "text_encoder_2": "t5", "vae": "vae"}


def split_recipe(reference: str, only: Sequence[str] = ()) -> Recipe:
    """A recipe that writes every component of an all-in-one file (or `only` some) as a file of its own, byte for byte."""
    whole = Model(reference, "whole", tuple(only))
    return Recipe(Nothing(), rest=(whole,), output=OutputOptions(layout=SEPARATE), title=f"components of {Path(reference).name}")


def bundle_recipe(files: Mapping[str, str], open_reference: Callable[[str], Checkpoint]) -> Recipe:
    """A recipe that puts components' own files (component -> reference) into one file in the layout of their family.

    `rest` among the names is a file of keys that are copied as they are. Raises IncompatibleError where one is missing, is none
    of the family's, or its file holds something else.
    """
    owners = {name: owners_of(open_reference(reference), (name,)) for name, reference in files.items()}
    for name, found in owners.items():
        _check_kind(name, files[name], found)
    table = next(
        (found.table for name, found in owners.items() if found.table and not found.alone and name == found.table.components[0]), None
    )
    if table is None:
        raise IncompatibleError(
            "bundle.missing-component",
            "no transformer (or UNet) is given, so it is not known whose components these are",
            facts={"given": ", ".join(files) or "nothing"},
            fix="--transformer FILE, or unet=FILE",
        )
    _check_components(table, files)
    models = {name: Model(reference, name, () if name == REST else (name,)) for name, reference in files.items()}
    copied = [name for name in files if fits(table, owners[name])]
    renamed = [name for name in files if name not in copied]
    root: Expression = reduce(fallback, [models[name] for name in renamed]) if renamed else Nothing()
    title = f"{table.family} with all its components"
    return Recipe(root, title=title, components=tuple(renamed), rest=tuple(models[name] for name in copied))


def pipeline_files(folder: Path) -> dict[str, str]:
    """The components of a FLUX.1 pipeline: component -> its folder; nothing for another pipeline, which is read as one model.

    Raises UsageError where the folder is no pipeline.
    """
    index = "model_index.json"
    if not (folder / index).is_file():
        raise UsageError("usage.no-pipeline", f"{folder} is no pipeline: it has no {index}", fix="name every component: NAME=FILE")
    kind = str(read_json(LocalFolder(folder), index).get("_class_name", ""))
    if not kind.startswith("Flux") or kind.startswith("Flux2"):
        return {}
    return {component: str(folder / part) for part, component in _FOLDERS.items() if (folder / part).is_dir()}


def _check_kind(name: str, reference: str, owners: Ownership) -> None:
    """The file given for a component must hold it."""
    if name == REST or name in owners.places:
        return
    held = ", ".join(owners.places) or "no component that is known"
    other = next(iter(owners.places), None)
    raise IncompatibleError(
        "bundle.wrong-kind",
        f"{reference} is given as {name}, but holds {held}",
        facts={"file": reference, "expected": name, "found": held},
        fix=f"{other}={reference} names what it is" if other else "fluxsmith inspect FILE shows what a file is",
    )


def _check_components(table: Table, files: Mapping[str, str]) -> None:
    """All components of the family, and no others."""
    strange = [name for name in files if name not in (*table.components, REST)]
    if strange:
        raise IncompatibleError(
            "bundle.no-such-component",
            f"{table.family} has no {strange[0]}",
            facts={"file": files[strange[0]], "components": ", ".join(table.components)},
            fix=f"leave {strange[0]} out",
        )
    missing = [name for name in table.components if name not in files and name not in _OPTIONAL.get(table.family, ())]
    if missing:
        raise IncompatibleError(
            "bundle.missing-component",
            f"an all-in-one file of {table.family} has {', '.join(table.components)}; not given: {', '.join(missing)}",
            facts={"given": ", ".join(files), "missing": ", ".join(missing)},
            fix=" ".join(f"{name}=FILE" for name in missing),
        )
