"""The layout of any other state dict: every key is its own canonical name, nothing is renamed or rearranged.

Checkpoints of transformers (language models, encoders) are read this way under the name that their config.json gives
them. Where keys have numbers, the longest list of them (`model.layers.0`, `.1`, ...) is taken for the blocks, called
`layer.N`, so that selectors and ramps work.
"""

import re
from collections.abc import Iterable

from fluxsmith.errors import IncompatibleError
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.dtypes import DTYPES
from fluxsmith.io.views import View
from fluxsmith.layouts.binding import Bound
from fluxsmith.layouts.table import Canonical, Piece

__all__ = ["KEYWISE", "bind_structural", "bind_transformers", "longest_list", "stage"]

#: Layouts in which a checkpoint is merged key by key.
KEYWISE = ("structural", "transformers")

_NUMBERED = re.compile(r"^((?:[^.]*[^.\d][^.]*\.)+?)(\d+)\.")
# What stands before the first block; all else that is in no block comes after the last one (norms, heads, poolers).
_FIRST = re.compile(r"embed|(^|\.)(wte|wpe|shared|patch|tok)", re.IGNORECASE)


def bind_structural(checkpoint: Checkpoint, family: str = "structural", strip: str = "", *, layout: str = "structural") -> Bound:
    """Every key as a canonical tensor, without the prefix `strip` where a key has it.

    Where two keys become one, the later one in the file wins, as in the tools whose files are read this way.
    """
    views = {key.removeprefix(strip): view for key, view in checkpoint.tensors.items()}
    before = longest_list(views)
    spec: dict[str, Canonical] = {}
    for key, view in views.items():
        _check_dtypes(checkpoint, key, view)
        rows = view.shape[0] if view.shape else 1
        tags = frozenset(part for part in key.split(".") if not part.isdigit())
        number = key[len(before) :].partition(".")[0] if before and key.startswith(before) else ""
        block = f"layer.{number}" if number.isdigit() else None
        spec[key] = Canonical(key, view.shape, block, tags, (), {layout: (Piece(key, 0, 0, rows),)})
    return Bound(checkpoint, family, layout, "", {}, spec, views)


def bind_transformers(checkpoint: Checkpoint, family: str) -> Bound:
    """The same for a checkpoint of transformers, its tensors in the order in which they are run."""
    bound = bind_structural(checkpoint, family, layout="transformers")
    order = sorted(bound.spec, key=lambda name: stage(name, bound.spec[name].block))
    return Bound(checkpoint, family, "transformers", "", {}, {name: bound.spec[name] for name in order}, bound.views)


def stage(name: str, block: str | None) -> tuple[int, int]:
    """When a tensor is used, as far as names tell: before the blocks, in which of them, or after them."""
    if block is not None:
        return 1, int(block.rpartition(".")[2])
    return (0 if _FIRST.search(name) else 2), 0


def longest_list(keys: Iterable[str]) -> str | None:
    """What stands before the number in the longest list of blocks (`model.layers.`); None where there is no list of two.

    Only the first number of a key counts: lists inside of blocks, such as experts, are longer than the list of blocks.
    """
    found: dict[str, set[int]] = {}
    for key in keys:
        if match := _NUMBERED.match(key):
            found.setdefault(match[1], set()).add(int(match[2]))
    whole = {before: len(numbers) for before, numbers in found.items() if numbers == set(range(len(numbers))) and len(numbers) > 1}
    return max(whole, key=lambda before: whole[before], default=None)


def _check_dtypes(checkpoint: Checkpoint, key: str, view: View) -> None:
    packed = [dtype for dtype in view.dtypes if DTYPES[dtype].bits % 8]
    if packed:
        raise IncompatibleError(
            "model.wrong-dtype",
            f"{checkpoint.reference} stores `{key}` as {packed[0]}, several values in a byte, which this version does not read",
            facts={"file": checkpoint.reference, "key": key, "found": packed[0]},
            fix="use the bf16 checkpoint that it was made from",
        )
