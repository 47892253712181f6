"""Reading torch.save files as extents: tensors are found in the zip without unpickling code and without copying.

torch.load under FakeTensorMode with weights_only=True resolves names, shapes and the byte offset of every storage
inside the (uncompressed) zip, so a .ckpt becomes the same views as a safetensors file.
"""

from pathlib import Path
from typing import Any, cast

from fluxsmith.errors import FileError
from fluxsmith.io.checkpoint import Checkpoint, local_file
from fluxsmith.io.dtypes import DTYPES
from fluxsmith.io.views import Extent, View

__all__ = ["open_pickle"]


def open_pickle(path: Path, reference: str) -> Checkpoint:
    """The tensors of a `torch.save` file in its zip format (torch 1.6 and later), weights only.

    Raises FileError where the file holds anything but tensors in (nested) dictionaries, or is in the older format.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode():
            data = torch.load(path, weights_only=True)
    except Exception as error:
        raise FileError(
            "file.unsafe-pickle",
            f"{path.name} cannot be read as plain tensors",
            facts={"file": path, "cause": str(error).split("\n")[0][:200]},
            fix="convert it where it was made, with safetensors.torch.save_file",
        ) from None
    fields = cast("dict[str, Any]", data)
    if isinstance(fields.get("state_dict"), dict):
        fields = fields["state_dict"]
    file = local_file(path)
    names = {d.torch: d.name for d in DTYPES.values()}
    views: dict[str, View] = {}
    for key, tensor in fields.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        base = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if base is None or not tensor.is_contiguous():
            raise FileError("file.unsafe-pickle", f"`{key}` of {path.name} is not stored in one piece", facts={"file": path, "key": key})
        dtype = names[str(tensor.dtype).removeprefix("torch.")]
        offset = base + tensor.storage_offset() * tensor.element_size()
        views[key] = View(tuple(tensor.shape), (Extent(str(path), offset, tensor.numel(), dtype),))
    if not views:
        raise FileError("file.no-weights", f"{path.name} holds no tensors", facts={"file": path})
    return Checkpoint(reference, (file,), views)
