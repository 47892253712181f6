"""Reading torch.save files as extents: tensors are found in the zip without unpickling code and without copying.

torch.load under FakeTensorMode with weights_only=True resolves names, shapes and the byte offset of every storage
inside the (uncompressed) zip, so a .ckpt becomes the same views as a safetensors file.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from fluxsmith.errors import FileError
from fluxsmith.io.checkpoint import Checkpoint, local_file
from fluxsmith.io.dtypes import DTYPES
from fluxsmith.io.views import Extent, View

__all__ = ["open_pickle"]

_FIX = "convert it where it was made, with safetensors.torch.save_file"


def open_pickle(path: Path, reference: str) -> Checkpoint:
    """The tensors of a `torch.save` file in its zip format (torch 1.6 and later), weights only.

    Raises FileError where the file holds anything but tensors in (nested) dictionaries, or is in the older format.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        # opened here: torch.load takes a path that ends in .safetensors for what it says
        with warnings.catch_warnings(action="ignore"), FakeTensorMode(), path.open("rb") as stream:
            data = torch.load(stream, weights_only=True)
    except Exception as error:
        raise _unsafe(f"{path.name} cannot be read as plain tensors", {"file": path, "cause": _cause(error)}) from None
    fields = cast("dict[Any, Any]", data) if isinstance(data, dict) else {}
    if isinstance(fields.get("state_dict"), dict):
        fields = fields["state_dict"]
    views = {str(key): _view(path, str(key), tensor) for key, tensor in fields.items() if isinstance(tensor, torch.Tensor)}
    if not views:
        raise FileError("file.no-weights", f"{path.name} holds no tensors by name", facts={"file": path}, fix=_FIX)
    return Checkpoint(reference, (local_file(path),), views)


def _view(path: Path, key: str, tensor: Any) -> View:
    """Where the bytes of a fake tensor lie in the zip."""
    facts = {"file": path, "key": key}
    base = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if base is None:
        raise _unsafe(f"{path.name} is in the format that torch had before 1.6", facts)
    if not tensor.is_contiguous():
        raise _unsafe(f"`{key}` of {path.name} is not stored in one piece", facts)
    dtype = {d.torch: d.name for d in DTYPES.values()}.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None:
        message = f"{path.name} stores `{key}` as {tensor.dtype}, which safetensors cannot hold"
        raise FileError("file.unknown-dtype", message, facts=facts, fix=_FIX)
    offset = base + tensor.storage_offset() * tensor.element_size()
    return View(tuple(tensor.shape), (Extent(str(path), offset, tensor.numel(), dtype),))


def _unsafe(message: str, facts: Mapping[str, object]) -> FileError:
    return FileError("file.unsafe-pickle", message, facts=facts, fix=_FIX)


def _cause(error: Exception) -> str:
    """What torch objects to, without its advice to read the file unsafely."""
    parts = [line.strip() for line in str(error).split("\n") if line.strip()]
    blocked = next((line for line in parts if "GLOBAL" in line or line.startswith("WeightsUnpickler error")), None)
    return (blocked or parts[0] if parts else type(error).__name__)[:200]
