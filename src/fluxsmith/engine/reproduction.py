"""Making an output again from what it carries: the recipe, and the hashes that its inputs must have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fluxsmith.engine.input_hashes import InputHashes
from fluxsmith.engine.lineage import NO_HASH, input_names, recorded_inputs
from fluxsmith.engine.merging import opener
from fluxsmith.errors import FileError, IncompatibleError
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.memory import is_memory
from fluxsmith.recipes.loading import recipe_from_text
from fluxsmith.recipes.recipe import Recipe

__all__ = ["check_inputs", "recorded_recipe"]


def recorded_recipe(checkpoint: Checkpoint, models: Mapping[str, str]) -> Recipe:
    """The recipe in a checkpoint's metadata, with some references replaced (files move).

    Raises IncompatibleError where the checkpoint carries none.
    """
    text = checkpoint.metadata.get("fluxsmith.recipe")
    if text is None:
        raise IncompatibleError(
            "reproduce.no-recipe",
            f"{checkpoint.reference} carries no fluxsmith recipe",
            facts={"file": checkpoint.reference},
            fix="only outputs of fluxsmith merge can be made again; fluxsmith inspect shows what a file carries",
        )
    recipe = recipe_from_text(text, f"{checkpoint.reference} (embedded recipe)", models=models)
    gone = next((model for model in recipe.models() if is_memory(model.reference)), None)
    if gone is not None:
        raise IncompatibleError(
            "reproduce.in-memory",
            f"`{gone.name}` was a state dict in memory when {checkpoint.reference} was made",
            facts={"input": gone.reference},
            fix=f"-m {gone.name}=FILE names a file with the same tensors",
        )
    # The metadata are the original's, so that files which have moved do not change the bytes.
    return replace(recipe, metadata=dict(checkpoint.metadata))


def check_inputs(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """Compare the inputs' hashes with those that the checkpoint records; returns how many files were compared.

    Raises IncompatibleError naming the first input that is not the same, FileError naming one that has moved.
    """
    open_reference = opener(download=True)
    recorded = recorded_inputs(checkpoint.metadata)
    compared = 0
    for model in (*recipe.models(), *recipe.adapters()):
        try:
            files = open_reference(model.reference).files
        except FileError as error:
            if error.code == "file.not-found":
                error.fix = f"-m {model.name}=PATH names it where it lies now"
            raise
        if recorded.get(model.name) == []:
            continue  # was in memory: there is nothing to compare with, the bytes of the result will show
        hashes = InputHashes(files).wait()
        expected = {entry["name"]: entry["hash"] for entry in recorded.get(model.name, [])}
        names = input_names([file.path for file in files])
        found = {names[file.path]: hashes[file.path] for file in files}
        wanted = list(expected.values())
        if NO_HASH in wanted or sorted(wanted) != sorted(found.values()):
            name = next((n for n, value in found.items() if value not in wanted), model.reference)
            raise IncompatibleError(
                "reproduce.other-input",
                f"`{model.name}` is not the input that {Path(checkpoint.reference).name} was made from",
                facts={
                    "input": model.reference,
                    "file": name,
                    "expected": ", ".join(wanted) or "no hash recorded",
                    "found": found.get(name, "-"),
                },
                fix=f"-m {model.name}=PATH names the right one",
            )
        compared += len(files)
    return compared
