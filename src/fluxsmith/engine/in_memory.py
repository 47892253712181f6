"""Results that stay in memory: a recipe as a state dict, for models that are run and not kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxsmith.engine.execution import Execution, Settings
from fluxsmith.engine.merging import opener
from fluxsmith.engine.plan import Plan
from fluxsmith.engine.planning import make_plan
from fluxsmith.errors import UsageError
from fluxsmith.io.dtypes import DTYPES
from fluxsmith.io.schemes import SCHEMES
from fluxsmith.io.writer import MemorySink
from fluxsmith.recipes.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["load_state_dict"]


def load_state_dict(recipe: Recipe, settings: Settings | None = None) -> tuple[dict[str, Tensor], Plan]:
    """The tensors of a recipe's result by name, and the plan that made them; nothing is written to disk.

    Raises UsageError where they were to be quantised: a state dict of numbers without their scales would be of no use.
    """
    import torch

    if recipe.output.dtype in SCHEMES:
        raise UsageError(
            "usage.quantised-in-memory", f"{recipe.output.dtype} is a form of files, a state dict in memory has none of its scales",
            fix="dtype='bf16', or write a file and load it with the program that reads it",
        )  # fmt: skip
    plan = make_plan(recipe, opener(download=True))
    sink = MemorySink(plan.files)
    Execution(plan, sink, settings or Settings()).run()
    tensors: dict[str, Tensor] = {}
    for file, buffer in zip(plan.files, sink.buffers, strict=True):
        data = torch.from_numpy(buffer)
        for name, entry in file.tensors.items():
            dtype = getattr(torch, str(DTYPES[entry.dtype].torch))
            part = data[entry.start : entry.stop]
            tensors[name] = part.view(dtype).reshape(entry.shape) if part.numel() else torch.empty(entry.shape, dtype=dtype)
    return tensors, plan
