"""Where every tensor of an output will lie: files, headers and offsets, all known before a byte is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from fluxsmith.errors import UsageError
from fluxsmith.io.dtypes import stored_type
from fluxsmith.io.gguf_header import aligned, encode_gguf_header
from fluxsmith.io.header import TensorEntry, encode_header

__all__ = ["FileFormat", "OutputFile", "parse_size", "place"]

FileFormat = Literal["safetensors", "gguf"]


@dataclass(frozen=True)
class OutputFile:
    """One file of an output. `tensors` have offsets after the header, `data_start` is the header's length in bytes,
    `metadata` are those that this file alone has."""

    name: str
    tensors: Mapping[str, TensorEntry]
    data_start: int
    container: FileFormat = "safetensors"
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """The bytes before the tensor data."""
        return (encode_gguf_header if self.container == "gguf" else encode_header)(self.tensors, {**metadata, **self.metadata})

    @property
    def data_bytes(self) -> int:
        last = max((entry.stop for entry in self.tensors.values()), default=0)
        return aligned(last) if self.container == "gguf" else last

    @property
    def size(self) -> int:
        return self.data_start + self.data_bytes


def place(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]],
    *,
    stem: str,
    shard_size: int | None,
    metadata: Mapping[str, str],
    container: FileFormat = "safetensors",
) -> list[OutputFile]:
    """Divide tensors (name, dtype, shape) into files and lay them out.

    Shards are cut as huggingface_hub cuts them: in the order given, a tensor that would pass `shard_size` opens the
    next file. Within a file wide types come first, then names in order, as the safetensors writer does; so offsets are
    aligned. The metadata stand in every file, so their length must not change afterwards. A GGUF file is one file, with
    the tensors in the order given.
    """
    if container == "gguf":
        return [_lay_out_gguf(f"{stem}.gguf", tensors, metadata)]
    groups: list[list[tuple[str, str, tuple[int, ...]]]] = [[]]
    used = 0
    for tensor in tensors:
        size = stored_type(tensor[1]).nbytes(prod(tensor[2]))
        if shard_size and groups[-1] and used + size > shard_size:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += size
    count = len(groups)
    names = [f"{stem}.safetensors"] if count == 1 else [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    return [_lay_out(name, group, metadata) for name, group in zip(names, groups, strict=True)]


def _lay_out(name: str, group: list[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> OutputFile:
    entries: dict[str, TensorEntry] = {}
    at = 0
    for key, dtype, shape in sorted(group, key=lambda t: (-stored_type(t[1]).bits, t[0])):
        stop = at + stored_type(dtype).nbytes(prod(shape))
        entries[key] = TensorEntry(dtype, shape, at, stop)
        at = stop
    return OutputFile(name, entries, len(encode_header(entries, metadata)))


def _lay_out_gguf(name: str, tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> OutputFile:
    entries: dict[str, TensorEntry] = {}
    at = 0
    for key, dtype, shape in tensors:
        stop = at + stored_type(dtype).nbytes(prod(shape))
        entries[key] = TensorEntry(dtype, shape, at, stop)
        at = aligned(stop)
    return OutputFile(name, entries, len(encode_gguf_header(entries, metadata)), "gguf")


def parse_size(text: str) -> int:
    """Bytes meant by `10GB`, `500MB`, `24GiB` or a plain number; powers of ten unless written with an `i`.

    Raises UsageError for anything else.
    """
    units = {"": 1, "B": 1}
    for power, letter in enumerate("KMGT", start=1):
        units |= {letter: 1000**power, f"{letter}B": 1000**power, f"{letter}IB": 1024**power}
    number = text.strip().rstrip("KMGTBIkmgtbi ")
    unit = text.strip()[len(number) :].strip().upper()
    try:
        size = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        raise UsageError("usage.size", f"`{text}` is not a size", fix="write it like 10GB or 500MB") from None
    if size <= 0:
        raise UsageError("usage.size", f"`{text}` is not a size above zero", fix="write it like 10GB or 500MB")
    return size
