"""One file that is broken, or not what its name says (formats.md 4.1; checks 1 to 4)."""

import os
import pickle
import struct
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

from bad_input.cases import Arguments, Case, Yard
from support.broken_files import RawFile, change_fields, header_length, raw_file, write_file

__all__ = ["FILES"]

KEY = "img_in.weight"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d7a" * 16 + "\nsize 23802932552\n"
HTML = "<!DOCTYPE html>\n<html><head><title>Access denied</title></head><body>Sign in to download</body></html>\n"


def _content(content: bytes | str) -> Callable[[Yard], Arguments]:
    """A file that holds something else altogether."""

    def arrange(yard: Yard) -> Arguments:
        yard.broken.write_bytes(content.encode() if isinstance(content, str) else content)
        return yard.merge(yard.broken)

    return arrange


def _broken(change: Callable[[Path], object]) -> Callable[[Yard], Arguments]:
    """A real file after `change`."""

    def arrange(yard: Yard) -> Arguments:
        change(yard.copy(yard.tiny.a))
        return yard.merge(yard.broken)

    return arrange


def _raw(change: Callable[[RawFile], object]) -> Callable[[Yard], Arguments]:
    """A real file whose header or data was changed and written back."""

    def edit(file: Path) -> None:
        raw = raw_file(file)
        change(raw)
        write_file(file, raw)

    return _broken(edit)


def _header(change: Callable[[str], str | bytes]) -> Callable[[Yard], Arguments]:
    """A real file whose header's text was changed."""

    def edit(file: Path) -> None:
        raw = raw_file(file)
        write_file(file, raw, header=change(raw.text()))

    return _broken(edit)


def _named(name: str, content: bytes | str = b"") -> Callable[[Yard], Arguments]:
    """A file of another name."""

    def arrange(yard: Yard) -> Arguments:
        file = yard.inputs / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return yard.merge(file)

    return arrange


def _cut(file: Path, *, to: Callable[[int, int], int]) -> None:
    """Keep the first bytes; `to` is given the header's length and the file's."""
    with file.open("r+b") as stream:
        stream.truncate(to(header_length(file), file.stat().st_size))


def _dangling(yard: Yard) -> Arguments:
    yard.broken.symlink_to(yard.inputs / "gone.safetensors")
    return yard.merge(yard.broken)


def _link_loop(yard: Yard) -> Arguments:
    yard.broken.symlink_to(yard.broken)
    return yard.merge(yard.broken)


def _folder(yard: Yard) -> Arguments:
    yard.broken.mkdir()
    return yard.merge(yard.broken)


def _torch_zip(yard: Yard) -> Arguments:
    import torch

    torch.save({KEY: torch.zeros(48, 16)}, yard.broken)
    return yard.merge(yard.broken)


def _torch_old(yard: Yard) -> Arguments:
    import torch

    torch.save({KEY: torch.zeros(48, 16)}, yard.broken, _use_new_zipfile_serialization=False)
    return yard.merge(yard.broken)


class Bomb:
    """An object whose pickle makes a folder when it is opened by a reader that runs pickles."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.place,)


def _bomb(*, zipped: bool) -> Callable[[Yard], Arguments]:
    return lambda yard: _pickle_with(lambda: {KEY: Bomb(yard.inputs / "burst")}, zipped=zipped)(yard)


def _pickle_with(make: Callable[[], object], *, zipped: bool = True) -> Callable[[Yard], Arguments]:
    """A torch.save file, read with --allow-pickle, that holds something else than tensors by name."""

    def arrange(yard: Yard) -> Arguments:
        import torch

        file = yard.inputs / "broken.ckpt"
        torch.save(make(), file, _use_new_zipfile_serialization=zipped)
        return yard.merge(file, "--allow-pickle")

    return arrange


def _tensor() -> object:
    import torch

    return torch.zeros(4)


def _complex() -> object:
    import torch

    return {KEY: torch.zeros(4, dtype=torch.complex128)}


def _transposed() -> object:
    import torch

    return {KEY: torch.zeros(48, 16).t()}


def _cut_pickle(yard: Yard) -> Arguments:
    import torch

    file = yard.inputs / "broken.pt"
    torch.save({KEY: torch.zeros(48, 16)}, file)
    os.truncate(file, file.stat().st_size // 2)
    return yard.merge(file, "--allow-pickle")


def _overlap(raw: RawFile) -> None:
    first, second = (raw.fields[key] for key in _same_size(raw))
    second["data_offsets"] = first["data_offsets"]


def _half_overlap(raw: RawFile) -> None:
    second = raw.fields[_same_size(raw)[1]]
    start, stop = second["data_offsets"]
    second["data_offsets"] = [start - 2, stop - 2]


def _same_size(raw: RawFile) -> tuple[str, str]:
    """Two tensors of equal size of which one follows the other."""
    keys = sorted(raw.keys, key=lambda key: raw.fields[key]["data_offsets"])
    return next((a, b) for a, b in pairwise(keys) if raw.fields[a]["shape"] == raw.fields[b]["shape"])


def _hole(raw: RawFile) -> None:
    raw.data = bytes(8) + raw.data
    for key in raw.keys:
        raw.fields[key]["data_offsets"] = [at + 8 for at in raw.fields[key]["data_offsets"]]


def _twice(text: str) -> str:
    """The first tensor's entry once more, with the same offsets: other readers load such a file without a word."""
    entry = text[text.index('"double_blocks.0.img_attn.norm.key_norm.scale"') :]
    return "{" + entry[: entry.index("}") + 1] + "," + text[1:]


def _metadata(raw: RawFile) -> None:
    raw.fields["__metadata__"]["step"] = 7


def _fields(**changes: object) -> Callable[[Yard], Arguments]:
    return _broken(lambda file: change_fields(file, KEY, **changes))


def _no_tensors(raw: RawFile) -> None:
    raw.fields, raw.data = {}, b""


#: Where files are cut off: in the length, in the header, at its end, in the data, before the last byte.
CUTS: dict[str, Callable[[int, int], int]] = {
    "1 byte": lambda header, size: 1,
    "7 bytes": lambda header, size: 7,
    "8 bytes": lambda header, size: 8,
    "9 bytes": lambda header, size: 9,
    "half a header": lambda header, size: header // 2,
    "a header less one byte": lambda header, size: header - 1,
    "a header": lambda header, size: header,
    "a header and one byte": lambda header, size: header + 1,
    "half the data": lambda header, size: (header + size) // 2,
    "all but eight bytes": lambda header, size: size - 8,
    "all but one byte": lambda header, size: size - 1,
}

FILES = [
    Case("missing file", lambda yard: yard.merge(yard.broken), 3, "file.not-found", ["{broken}"]),
    Case("0 bytes", _content(b""), 3, "file.empty", ["{broken}", "0 bytes"]),
    Case("git-lfs pointer", _content(LFS), 3, "file.lfs-pointer", ["{broken}", "git lfs pull"]),
    Case("web page", _content(HTML), 3, "file.html", ["{broken}", "<!DOCTYPE html>", "hf auth login"]),
    Case("web page after blank lines", _content("\n\n  " + HTML), 3, "file.html", ["{broken}"]),
    Case("torch zip", _torch_zip, 3, "file.pickle", ["{broken}", "--allow-pickle"]),
    Case("torch pickle before 1.6", _torch_old, 3, "file.pickle", ["{broken}", "--allow-pickle"]),
    Case("plain pickle", _content(pickle.dumps({"a": 1})), 3, "file.pickle", ["{broken}", "--allow-pickle"]),
    Case(
        "plain pickle, allowed", lambda yard: [*_content(pickle.dumps({"a": 1}))(yard), "--allow-pickle"],
        3, "file.unsafe-pickle", ["{broken}"],
    ),
    Case("pickle that runs a command, allowed", _bomb(zipped=True), 3, "file.unsafe-pickle", ["broken.ckpt"]),
    Case(
        "old pickle that runs a command, allowed", _bomb(zipped=False),
        3, "file.unsafe-pickle", ["broken.ckpt"],
    ),
    Case(
        "old pickle of tensors, allowed", _pickle_with(lambda: {KEY: _tensor()}, zipped=False),
        3, "file.unsafe-pickle", ["broken.ckpt", "before 1.6"],
    ),
    Case("pickle of a list, allowed", _pickle_with(lambda: [1, 2]), 3, "file.no-weights", ["broken.ckpt"]),
    Case("pickle of one tensor, allowed", _pickle_with(_tensor), 3, "file.no-weights", ["broken.ckpt"]),
    Case("pickle of no tensors, allowed", _pickle_with(lambda: {"epoch": 3}), 3, "file.no-weights", ["broken.ckpt"]),
    Case("pickle of complex128, allowed", _pickle_with(_complex), 3, "file.unknown-dtype", ["broken.ckpt", KEY, "complex128"]),
    Case("pickle of a transposed tensor, allowed", _pickle_with(_transposed), 3, "file.unsafe-pickle", ["broken.ckpt", KEY]),
    Case("pickle cut short, allowed", _cut_pickle, 3, "file.unsafe-pickle", ["broken.pt"]),
    Case("GGUF without tensors", _content(b"GGUF" + struct.pack("<IQQ", 3, 0, 0)), 3, "file.no-weights", ["{broken}"]),
    Case("GGUF of version 1", _content(b"GGUF" + struct.pack("<IQQ", 1, 1, 0)), 3, "file.bad-header", ["{broken}", "version 1"]),
    Case("GGUF cut short in its header", _content(b"GGUF" + struct.pack("<IQQ", 3, 9, 2)), 3, "file.truncated", ["{broken}"]),
    Case("GGUF of too many fields", _content(b"GGUF" + struct.pack("<IQQ", 3, 9, 1 << 60)), 3, "file.truncated", ["{broken}"]),
    Case("GGUF with an endless name", _content(b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1 << 62)), 3, "file.truncated", ["{broken}"]),
    Case("four bytes of GGUF", _content(b"GGUF"), 3, "file.truncated", ["{broken}"]),
    Case("dangling link", _dangling, 3, "file.dangling-link", ["{broken}", "gone.safetensors"]),
    Case("link to itself", _link_loop, 3, "file.dangling-link", ["{broken}"]),
    Case("empty folder instead of a file", _folder, 3, "file.no-weights", ["{broken}"]),
    Case(
        "unfinished download", _named("flux.safetensors.incomplete", "abc"),
        3, "file.unfinished-download", ["flux.safetensors.incomplete"],
    ),
    Case("text", _content("This is not a model.\n"), 3, "file.not-safetensors", ["{broken}"]),
    Case("random bytes", _content(bytes(range(7, 250)) * 9), 3, "file.not-safetensors", ["{broken}"]),
    Case("zeros", _content(bytes(4096)), 3, "file.bad-header", ["{broken}"]),
    *(
        Case(f"cut after {name}", _broken(partial(_cut, to=to)), 3, "file.truncated", ["{broken}", "cut short" if i > 1 else "too few"])
        for i, (name, to) in enumerate(CUTS.items())
    ),
    Case("trailing byte", _raw(lambda raw: setattr(raw, "data", raw.data + b"!")), 3, "file.trailing-bytes", ["{broken}", "1 bytes after"]),
    Case(
        "trailing tensor", _raw(lambda raw: setattr(raw, "data", raw.data + bytes(96))),
        3, "file.trailing-bytes", ["{broken}", "96 bytes"],
    ),
    Case("two tensors in one place", _raw(_overlap), 3, "file.overlap", ["{broken}", "key "]),
    Case("overlap by one element", _raw(_half_overlap), 3, "file.overlap", ["{broken}", "key "]),
    Case("hole before the first tensor", _raw(_hole), 3, "file.hole", ["{broken}", "8 bytes"]),
    Case("hole in the middle", _raw(lambda raw: raw.fields.pop(KEY)), 3, "file.hole", ["{broken}", f"{48 * 16 * 2} bytes"]),
    Case("name twice in the header", _header(_twice), 3, "file.duplicate-key", ["{broken}", "key_norm.scale"]),
    Case("unknown dtype", _fields(dtype="BF17"), 3, "file.unknown-dtype", ["{broken}", KEY, "BF17"]),
    Case("dtype that is no word", _fields(dtype=["BF16"]), 3, "file.bad-header", ["{broken}", KEY]),
    Case("shape smaller than its bytes", _fields(shape=[47, 16]), 3, "file.bad-header", ["{broken}", KEY, "1536", "1504"]),
    Case("shape larger than its bytes", _fields(shape=[48, 17]), 3, "file.bad-header", ["{broken}", KEY]),
    Case("dtype wider than its bytes", _fields(dtype="F32"), 3, "file.bad-header", ["{broken}", KEY, "F32"]),
    Case("shape below zero", _fields(shape=[-48, -16]), 3, "file.bad-header", ["{broken}", KEY]),
    Case("shape of text", _fields(shape="48"), 3, "file.bad-header", ["{broken}", KEY]),
    Case("shape of fractions", _fields(shape=[48.0, 16.0]), 3, "file.bad-header", ["{broken}", KEY]),
    Case("shape that is an object", _fields(shape={}), 3, "file.bad-header", ["{broken}", KEY]),
    Case("offsets the wrong way round", _fields(data_offsets=[1536, 0]), 3, "file.bad-header", ["{broken}", KEY]),
    Case("one offset", _fields(data_offsets=[0]), 3, "file.bad-header", ["{broken}", KEY]),
    Case("offsets far beyond the file", _fields(data_offsets=[10**15, 10**15 + 1536]), 3, "file.hole", ["{broken}"]),
    Case("entry that is a number", _header(lambda text: text.replace("{", f'{{"{KEY}2":5,', 1)), 3, "file.bad-header", ["{broken}", KEY]),
    Case("metadata that are no text", _raw(_metadata), 3, "file.bad-header", ["{broken}", "step"]),
    Case("metadata that are a list", _header(lambda text: '{"__metadata__":[1]}'), 3, "file.bad-header", ["{broken}"]),
    Case("header that is no JSON", _header(lambda text: text[:-2]), 3, "file.bad-header", ["{broken}", "not JSON"]),
    Case("header that is a list", _header(lambda text: "[1, 2]"), 3, "file.bad-header", ["{broken}"]),
    Case(
        "header that is no UTF-8", _header(lambda text: text.encode().replace(b"img_in", b"img\xff\xfe")),
        3, "file.bad-header", ["{broken}"],
    ),
    Case("header of a hundred thousand brackets", _header(lambda text: "[" * 100_000), 3, "file.bad-header", ["{broken}"]),
    Case(
        "number of five thousand digits", _header(lambda text: text.replace("[0,", f"[{'9' * 5000},", 1)),
        3, "file.bad-header", ["{broken}"],
    ),
    Case("no tensors", _raw(_no_tensors), 3, "file.no-weights", ["{broken}"]),
]  # fmt: skip
