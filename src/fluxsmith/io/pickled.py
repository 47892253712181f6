"""Reading torch.save files as extents: tensors are found in the zip without unpickling code and without copying.

torch.load under FakeTensorMode with weights_only=True resolves names, shapes and the byte offset of every storage
inside the (uncompressed) zip, so a .ckpt becomes the same views as a safetensors file.
"""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from fluxsmith.errors import FileError
from fluxsmith.io.checkpoint import Checkpoint, LocalFolder, local_file, read_json, weight_map_of
from fluxsmith.io.dtypes import DTYPES
from fluxsmith.io.views import Extent, View

__all__ = ["open_pickle", "open_pickled_folder"]

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


def open_pickled_folder(folder: LocalFolder, reference: str) -> Checkpoint | None:
    """A folder of transformers' older files: pytorch_model.bin, or shards with pytorch_model.bin.index.json.

    None where it has neither. Raises FileError as open_pickle does, and where the index names a file that is not there
    or a tensor that its file does not hold.
    """
    names, index = folder.names(), "pytorch_model.bin.index.json"
    config = read_json(folder, "config.json") if "config.json" in names else None
    if index not in names:
        single = next((name for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin") if name in names), None)
        return replace(open_pickle(folder.root / single, reference), config=config) if single else None
    weight_map, _ = weight_map_of(folder, index)
    opened = {name: open_pickle(folder.root / name, reference) for name in sorted(set(weight_map.values())) if name in names}
    absent = sorted(key for key, name in weight_map.items() if name not in opened or key not in opened[name].tensors)
    if absent:
        raise FileError(
            "file.missing-shard",
            f"{len(absent)} tensors that {index} names are not in the files of {folder.name}",
            facts={"folder": folder.name, "key": absent[0], "expected in": weight_map[absent[0]]},
            fix="download the missing files",
        )
    tensors = {key: opened[name].tensors[key] for key, name in weight_map.items()}
    return Checkpoint(reference, tuple(file for part in opened.values() for file in part.files), tensors, {}, config)
