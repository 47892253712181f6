"""State dicts in memory as checkpoints: their tensors are extents of files that are buffers.

A buffer lives as long as the node of the recipe that it belongs to; nothing is copied where they lie contiguous in main memory.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fluxsmith.errors import FileError, IncompatibleError
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.dtypes import DTYPES
from fluxsmith.io.views import Extent, View

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["buffer", "checkpoint_of", "is_memory"]

_PREFIX = "memory:"
_numbers = itertools.count()
_lock = threading.Lock()
_buffers: dict[str, memoryview] = {}
_known: weakref.WeakKeyDictionary[object, Checkpoint] = weakref.WeakKeyDictionary()


def is_memory(file: str) -> bool:
    """Whether a file of an extent is a buffer."""
    return file.startswith(_PREFIX)


def buffer(file: str) -> memoryview:
    """The bytes of a buffer; raises FileError where its tensors are gone."""
    try:
        return _buffers[file]
    except KeyError:
        raise FileError(
            "file.gone", f"the state dict {file} is no longer in memory", fix="keep the expression until the run ends"
        ) from None


def checkpoint_of(owner: object, tensors: Mapping[str, Tensor], reference: str) -> Checkpoint:
    """A state dict as a checkpoint called `reference`; its buffers live as long as `owner`.

    Raises IncompatibleError for tensors of a type that no checkpoint has, and for what is no tensor with values.
    """
    with _lock:
        if owner not in _known:
            _known[owner] = _make(tensors, reference)
            files = [extent.file for view in _known[owner].tensors.values() for extent in view.extents]
            weakref.finalize(owner, _release, files)
        return _known[owner]


def _release(files: Sequence[str]) -> None:
    for file in files:
        _buffers.pop(file, None)


def _make(tensors: Mapping[str, Tensor], reference: str) -> Checkpoint:
    names = {dtype.torch: name for name, dtype in DTYPES.items() if dtype.torch}
    views: dict[str, View] = {}
    for key, tensor in tensors.items():
        _check_tensor(key, tensor, reference)
        dtype = names.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None:
            raise IncompatibleError(
                "model.wrong-dtype",
                f"`{key}` of {reference} is of type {tensor.dtype}, which no checkpoint has",
                facts={"key": key},
                fix="convert it to float32, bfloat16 or float16",
            )
        file = f"{_PREFIX}{next(_numbers)}:{key}"
        _buffers[file] = _bytes(tensor)
        views[key] = View(tuple(tensor.shape), (Extent(file, 0, tensor.numel(), dtype),))
    return Checkpoint(reference, (), views)


def _check_tensor(key: object, tensor: object, reference: str) -> None:
    import torch

    if not isinstance(key, str):
        problem = f"a key of {reference} is {key!r}, not text"
    elif not isinstance(tensor, torch.Tensor):
        problem = f"`{key}` of {reference} is of type {type(tensor).__name__}, not a tensor"
    elif tensor.is_meta or tensor.layout is not torch.strided:
        problem = f"`{key}` of {reference} is {'on the meta device, without values' if tensor.is_meta else 'a sparse tensor'}"
    else:
        return
    raise IncompatibleError("model.not-a-tensor", problem, facts={"key": key}, fix="give a dictionary of names and dense tensors")


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
