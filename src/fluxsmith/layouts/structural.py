"""The layout of any other state dict: every key is its own canonical name, nothing is renamed or rearranged."""

from fluxsmith.errors import IncompatibleError
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.dtypes import DTYPES
from fluxsmith.io.views import View
from fluxsmith.layouts.binding import Bound
from fluxsmith.layouts.table import Canonical, Piece

__all__ = ["bind_structural"]


def bind_structural(checkpoint: Checkpoint, family: str = "structural", strip: str = "") -> Bound:
    """Every key as a canonical tensor, without the prefix `strip` where a key has it.

    Where two keys become one, the later one in the file wins, as in the tools whose files are read this way.
    """
    spec: dict[str, Canonical] = {}
    views = {key.removeprefix(strip): view for key, view in checkpoint.tensors.items()}
    for key, view in views.items():
        _check_dtypes(checkpoint, key, view)
        rows = view.shape[0] if view.shape else 1
        tags = frozenset(part for part in key.split(".") if not part.isdigit())
        spec[key] = Canonical(key, view.shape, None, tags, (), {"structural": (Piece(key, 0, 0, rows),)})
    return Bound(checkpoint, family, "structural", "", {}, spec, views)


def _check_dtypes(checkpoint: Checkpoint, key: str, view: View) -> None:
    packed = [dtype for dtype in view.dtypes if DTYPES[dtype].bits % 8]
    if packed:
        raise IncompatibleError(
            "model.wrong-dtype",
            f"{checkpoint.reference} stores `{key}` as {packed[0]}, several values in a byte, which this version does not read",
            facts={"file": checkpoint.reference, "key": key, "found": packed[0]},
            fix="use the bf16 checkpoint that it was made from",
        )
