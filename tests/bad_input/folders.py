"""Shards and indices that do not belong together (check 5)."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_input.cases import Arguments, Case, Yard
from support.broken_files import raw_file, write_file

__all__ = ["FOLDERS"]

INDEX = "diffusion_pytorch_model.safetensors.index.json"
KEY = "x_embedder.weight"


def _folder(change: Callable[[Path], object]) -> Callable[[Yard], Arguments]:
    """A folder of shards after `change`."""

    def arrange(yard: Yard) -> Arguments:
        folder = yard.copy(yard.tiny.sharded, "broken")
        change(folder)
        return yard.merge(folder)

    return arrange


def _index(change: Callable[[dict[str, Any]], object]) -> Callable[[Yard], Arguments]:
    """A folder of shards whose index says something else."""

    def edit(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        changed = change(index)
        (folder / INDEX).write_text(json.dumps(index if changed is None else changed))

    return _folder(edit)


def _index_text(text: str) -> Callable[[Yard], Arguments]:
    return _folder(lambda folder: (folder / INDEX).write_text(text))


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _holder(folder: Path) -> Path:
    """The shard that holds KEY."""
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][KEY]


def _total(change: Callable[[int], object]) -> Callable[[Yard], Arguments]:
    return _index(lambda index: index["metadata"].update(total_size=change(index["metadata"]["total_size"])))


def _lose_key(folder: Path) -> None:
    """The index names a key that its shard lacks."""
    shard = _holder(folder)
    write_file(shard, raw_file(shard).without(KEY))


def _double_key(folder: Path) -> None:
    """A shard holds once more what another one has."""
    holder = _holder(folder)
    other = next(shard for shard in _shards(folder) if shard != holder)
    part = raw_file(holder).part(KEY)
    raw = raw_file(other)
    write_file(other, raw.with_tensors({**{key: raw.part(key) for key in raw.keys}, KEY: part}))


def _cut_shard(folder: Path) -> None:
    os.truncate(_holder(folder), _holder(folder).stat().st_size - 2)


def _pointer_shard(folder: Path) -> None:
    _holder(folder).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99999\n")


def _folder_shard(folder: Path) -> None:
    shard = _holder(folder)
    shard.unlink()
    shard.mkdir()


def _dangling_shard(folder: Path) -> None:
    shard = _holder(folder)
    shard.unlink()
    shard.symlink_to(folder / "blobs" / "gone")


def _half_updated(folder: Path) -> None:
    """One shard of another version, with the same names."""
    shard = _holder(folder)
    raw = raw_file(shard)
    dtype, shape, data = raw.part(KEY)
    wider = {key: raw.part(key) for key in raw.keys} | {KEY: (dtype, [shape[0], shape[1] * 2], data * 2)}
    write_file(shard, raw.with_tensors(wider))


def _only_weights(folder: Path, *names: str) -> None:
    """A folder without an index that holds one file under several names."""
    whole = folder.parent / "whole.safetensors"
    shutil.copy(_shards(folder)[0], whole)
    shutil.rmtree(folder)
    folder.mkdir()
    for name in names:
        shutil.copy(whole, folder / name)


def _pipeline(folder: Path) -> None:
    """A pipeline whose transformer was not downloaded."""
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')


FOLDERS = [
    Case("missing shard", _folder(lambda f: _shards(f)[3].unlink()), 3, "file.missing-shard", ["{inputs}/broken", INDEX, "-00004-of-"]),
    Case(
        "two missing shards", _folder(lambda f: [s.unlink() for s in _shards(f)[1:3]]),
        3, "file.missing-shard", ["-00002-of-", "-00003-of-"],
    ),
    Case("shard that is a dangling link", _folder(_dangling_shard), 3, "file.dangling-link", ["diffusion_pytorch_model-", "blobs/gone"]),
    Case("shard that is a folder", _folder(_folder_shard), 3, "file.missing-shard", ["{inputs}/broken", "diffusion_pytorch_model-"]),
    Case("shard that is a git-lfs pointer", _folder(_pointer_shard), 3, "file.lfs-pointer", ["{inputs}/broken/diffusion_pytorch_model-"]),
    Case("shard cut short", _folder(_cut_shard), 3, "file.truncated", ["{inputs}/broken/diffusion_pytorch_model-"]),
    Case(
        "shard that lacks a key of the index", _folder(_lose_key),
        3, "file.bad-index", ["{inputs}/broken", INDEX, KEY, "diffusion_pytorch_model-"],
    ),
    Case("key in two shards", _folder(_double_key), 3, "file.duplicate-key", ["{inputs}/broken", KEY, "diffusion_pytorch_model-"]),
    Case("shard of another version", _folder(_half_updated), 3, "file.bad-index", ["{inputs}/broken", INDEX]),
    Case(
        "index with a key too many", _index(lambda i: i["weight_map"].update({"nowhere.weight": i["weight_map"][KEY]})),
        3, "file.bad-index", ["nowhere.weight", "{inputs}/broken"],
    ),
    Case("index without a key", _index(lambda i: i["weight_map"].pop(KEY) and None), 3, "file.bad-index", [KEY, INDEX, "{inputs}/broken"]),
    Case(
        "index with a key in the wrong shard",
        _index(lambda i: i["weight_map"].update({KEY: min(set(i["weight_map"].values()) - {i["weight_map"][KEY]})})),
        3, "file.bad-index", [KEY, INDEX],
    ),
    Case(
        "index to a file outside", _index(lambda i: i["weight_map"].update({KEY: "../recipe.yaml"})),
        3, "file.missing-shard", ["../recipe.yaml"],
    ),
    Case("total_size too large", _total(lambda total: total + 2), 3, "file.bad-index", ["{inputs}/broken", "630,370", "630,368"]),
    Case("total_size of a wider type", _total(lambda total: total * 2), 3, "file.bad-index", ["{inputs}/broken", "1,260,736"]),
    Case("total_size that is no number", _total(lambda total: "large"), 3, "file.bad-index", ["{inputs}/broken", "total_size"]),
    Case(
        "index without weight_map", _index(lambda i: i.pop("weight_map") and None),
        3, "file.bad-index", ["{inputs}/broken", "weight_map"],
    ),
    Case("index with an empty weight_map", _index(lambda i: i["weight_map"].clear()), 3, "file.no-weights", ["{inputs}/broken", INDEX]),
    Case(
        "index whose weight_map is a list", _index(lambda i: i.update(weight_map=[KEY])),
        3, "file.bad-index", ["{inputs}/broken", "weight_map"],
    ),
    Case("index that is a list", _index(lambda i: [i]), 3, "file.bad-json", ["{inputs}/broken", INDEX]),
    Case("index cut short", _folder(lambda f: os.truncate(f / INDEX, 500)), 3, "file.bad-json", ["{inputs}/broken", INDEX]),
    Case("index of 0 bytes", _index_text(""), 3, "file.bad-json", ["{inputs}/broken", INDEX]),
    Case("index of a hundred thousand brackets", _index_text("[" * 100_000), 3, "file.bad-json", ["{inputs}/broken", INDEX]),
    Case("index that is a web page", _index_text("<!DOCTYPE html>"), 3, "file.bad-json", ["{inputs}/broken", INDEX]),
    Case(
        "config.json that is no JSON", _folder(lambda f: (f / "config.json").write_text("{")),
        3, "file.bad-json", ["{inputs}/broken", "config.json"],
    ),
    Case(
        "config.json that is a list", _folder(lambda f: (f / "config.json").write_text("[1]")),
        3, "file.bad-json", ["{inputs}/broken", "config.json"],
    ),
    Case("shards without an index", _folder(lambda f: (f / INDEX).unlink()), 3, "file.missing-index", ["{inputs}/broken", "index.json"]),
    Case(
        "two safetensors files without an index", _folder(lambda f: _only_weights(f, "one.safetensors", "two.safetensors")),
        3, "file.ambiguous", ["{inputs}/broken", "one.safetensors", "two.safetensors"],
    ),
    Case("folder without weights", _folder(lambda f: _only_weights(f)), 3, "file.no-weights", ["{inputs}/broken"]),
    Case("pipeline without a transformer", _folder(_pipeline), 3, "file.not-found", ["{inputs}/broken", "transformer"]),
]  # fmt: skip
