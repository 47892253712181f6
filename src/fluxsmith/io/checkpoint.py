"""What a checkpoint is: file(s) of tensors, known by their headers alone, and the folders that they lie in."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from fluxsmith.errors import FileError
from fluxsmith.io.header import Header, parse_header
from fluxsmith.io.sniff import check_readable
from fluxsmith.io.views import View

__all__ = [
    "PARTS",
    "Checkpoint",
    "Folder",
    "LocalFolder",
    "Quantised",
    "WeightFile",
    "local_file",
    "read_json",
    "read_local_header",
    "weight_map_of",
]

#: Folders of a diffusers pipeline that hold weights.
PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
STEMS = ("diffusion_pytorch_model", "model")
#: What PEFT and diffusers call the file of an adapter, and what says how PEFT's is meant.
ADAPTER_STEMS = ("adapter_model", "pytorch_lora_weights")
ADAPTER_CONFIG = "adapter_config.json"

FIX_INDEX = "download the index and the shards of one and the same version"


@dataclass(frozen=True)
class WeightFile:
    """One file of a checkpoint. `stamp` is (size, mtime in ns, inode) of a local file, or the ETag of a remote one."""

    path: str
    size: int
    stamp: str
    remote: str | None = None


@dataclass(frozen=True)
class Quantised:
    """How a checkpoint is quantised, in words, once its tensors are views of the values.

    `stored` are the tensors of the file(s) by their own keys. Of these, `sides` belong to others (scales, tables, marks),
    and `dropped` say nothing of the weights, each with what it is.
    """

    scheme: str
    stored: Mapping[str, View]
    sides: tuple[str, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Checkpoint:
    """File(s) of tensors, opened by header only: nothing of the weights has been read.

    `reference` is what the user wrote, `config` the config.json beside the weights, where there is one. `parts` are
    the config.json of every component of a pipeline, whose keys stand after the name of its folder (`unet/conv_in...`).
    `folder` is the local folder that holds all of it, with other files that belong to the model (tokenizers).
    `quantised` says of a checkpoint whose tensors have codecs how it is stored; None: plain, or not yet looked at.
    `adapter_config` is the adapter_config.json beside the weights, where they are PEFT's; a local one is among the `files`.
    """

    reference: str
    files: tuple[WeightFile, ...]
    tensors: Mapping[str, View]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    config: Mapping[str, Any] | None = None
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, "Mapping[str, Any]"])
    folder: str | None = None
    quantised: Quantised | None = None
    adapter_config: Mapping[str, Any] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as they are stored."""
        return sum(view.nbytes for view in self.stored.values())

    @property
    def dtypes(self) -> set[str]:
        return {dtype for view in self.tensors.values() for dtype in view.dtypes}

    @property
    def stored(self) -> Mapping[str, View]:
        """The tensors of the file(s), where they are quantised with all that belongs to them."""
        return self.quantised.stored if self.quantised else self.tensors

    @property
    def dropped(self) -> Mapping[str, str]:
        """Stored keys that belong to quantised weights without saying anything of their values, with what they are."""
        return self.quantised.dropped if self.quantised else {}

    @property
    def sides(self) -> tuple[str, ...]:
        """Stored keys that belong to quantised weights: scales, tables, marks."""
        return self.quantised.sides if self.quantised else ()

    @property
    def kinds(self) -> set[str]:
        """How tensors are stored: element types, and the formats of quantised ones."""
        return {kind for view in self.tensors.values() for kind in view.kinds}


class Folder(Protocol):
    """Where a checkpoint's files lie: a local folder, or a repository on the Hub."""

    name: str

    def names(self) -> Sequence[str]:
        """File names, relative, with `/`."""
        ...

    def text(self, name: str) -> str:
        """The text of a small file."""
        ...

    def header(self, name: str) -> tuple[WeightFile, Header]:
        """The header of a weight file."""
        ...


class LocalFolder:
    """A folder on this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = str(root)

    def names(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self.root) if not entry.is_dir())

    def text(self, name: str) -> str:
        return (self.root / name).read_text()

    def header(self, name: str) -> tuple[WeightFile, Header]:
        return read_local_header(self.root / name)


def read_local_header(path: Path) -> tuple[WeightFile, Header]:
    """The header of one safetensors file; raises FileError as `parse_header` does."""
    size = check_readable(path)
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        header = parse_header(read, size, str(path))
    return local_file(path), header


def local_file(path: Path) -> WeightFile:
    """A WeightFile with the stamp that tells whether the file is still the same one."""
    stat = path.stat()
    return WeightFile(str(path), stat.st_size, f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}")


def weight_map_of(folder: Folder, index: str) -> tuple[dict[str, str], int | None]:
    """Tensor -> file of an index, and the bytes of all tensors where it says; raises FileError where it is no index."""
    fields = read_json(folder, index)
    facts = {"folder": folder.name, "index": index}
    try:
        weight_map = {str(key): str(value) for key, value in fields["weight_map"].items()}
    except (KeyError, AttributeError):
        raise FileError("file.bad-index", f"{index} in {folder.name} has no weight_map", facts=facts, fix=FIX_INDEX) from None
    try:
        total = (fields.get("metadata") or {}).get("total_size")
        return weight_map, None if total is None else int(total)
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise FileError("file.bad-index", f"{index} in {folder.name} has no number for total_size", facts=facts, fix=FIX_INDEX) from None


def read_json(folder: Folder, name: str) -> dict[str, Any]:
    """An object of a JSON file; raises FileError where the file is something else."""
    facts, fix = {"folder": folder.name, "file": name}, "download it again"
    try:
        fields = json.loads(folder.text(name))
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, or a number of thousands of digits
        raise FileError("file.bad-json", f"{name} in {folder.name} is not JSON", facts={**facts, "cause": error}, fix=fix) from None
    if not isinstance(fields, dict):
        raise FileError("file.bad-json", f"{name} in {folder.name} is not a JSON object", facts=facts, fix=fix)
    return cast("dict[str, Any]", fields)
