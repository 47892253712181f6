"""Opening a checkpoint by its headers alone: one file, a folder of shards with an index, or files on the Hub."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fluxsmith.errors import FileError
from fluxsmith.io.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_STEMS,
    FIX_INDEX,
    PARTS,
    STEMS,
    Checkpoint,
    Folder,
    LocalFolder,
    WeightFile,
    local_file,
    read_json,
    read_local_header,
    weight_map_of,
)
from fluxsmith.io.gguf import MAGIC, gguf_checkpoint
from fluxsmith.io.header import Header
from fluxsmith.io.sniff import check_readable, is_pickle, reading
from fluxsmith.io.views import Extent, View

__all__ = ["join_parts", "open_checkpoint", "open_folder", "pipeline_parts"]


def open_checkpoint(path: Path, reference: str | None = None, *, allow_pickle: bool = False) -> Checkpoint:
    """A file or a folder on this machine, by its headers.

    Raises FileError (exit code 3) naming the file and the cause.
    """
    with reading(path):
        return _open_local(path, reference or str(path), allow_pickle)


def _open_local(path: Path, reference: str, allow_pickle: bool) -> Checkpoint:
    if path.is_dir():
        parts = _parts_of(path)
        if parts:
            opened = {part: _open_local_folder(path / part, reference, allow_pickle) for part in parts}
            return join_parts(reference, opened, str(path))
        inside = path / "transformer"
        pipeline = (path / "model_index.json").exists() or (inside.is_dir() and not any(path.glob("*.safetensors*")))
        root = inside if pipeline else path
        if not root.is_dir():
            fix = "download its transformer folder"
            raise FileError("file.not-found", f"{path} is a pipeline without a transformer folder", facts={"folder": path}, fix=fix)
        return _open_local_folder(root, reference, allow_pickle)
    check_readable(path)
    if allow_pickle and is_pickle(_first_bytes(path)):
        from fluxsmith.io.pickled import open_pickle

        return open_pickle(path, reference)
    if _first_bytes(path).startswith(MAGIC):
        return _open_gguf(path, reference)
    file, header = read_local_header(path)
    _check_tensors(str(path), header.tensors)
    config = _sibling(path, STEMS, "config.json")
    adapter = _sibling(path, ADAPTER_STEMS[:1], ADAPTER_CONFIG)
    files = (file,) if adapter is None else (file, local_file(path.parent / ADAPTER_CONFIG))
    return Checkpoint(reference, files, _views(file, header), header.metadata, config, adapter_config=adapter)


def _open_gguf(path: Path, reference: str) -> Checkpoint:
    with path.open("rb") as stream:

        def read(offset: int, length: int) -> bytes:
            stream.seek(offset)
            return stream.read(length)

        return gguf_checkpoint(read, local_file(path), reference)


def _open_local_folder(root: Path, reference: str, allow_pickle: bool) -> Checkpoint:
    """A folder of safetensors files; with `allow_pickle` also one of transformers' older pytorch_model.bin files."""
    names = LocalFolder(root).names()
    if allow_pickle and not any(name.endswith(".safetensors") for name in names):
        from fluxsmith.io.pickled import open_pickled_folder

        pickled = open_pickled_folder(LocalFolder(root), reference)
        if pickled is not None:
            return replace(pickled, folder=str(root))
    return replace(open_folder(LocalFolder(root), reference), folder=str(root))


def pipeline_parts(files: Collection[str], kind: str | None) -> list[str]:
    """The component folders of a pipeline that is opened as a whole, those of Stable Diffusion; of others the
    transformer alone is opened (an empty list).

    `files` are names relative to the folder, `kind` is what model_index.json calls the pipeline (None: there is none).
    """
    weights = [name for name in files if name.endswith((".safetensors", ".bin"))]
    parts = [part for part in PARTS if any(name.startswith(f"{part}/") for name in weights)]
    if kind is None:
        return parts if "unet" in parts and not any("/" not in name for name in weights) else []
    return parts if kind.startswith("StableDiffusion") else []


def _parts_of(path: Path) -> list[str]:
    folder = LocalFolder(path)
    names = folder.names()
    below = [f"{part}/{name}" for part in PARTS if (path / part).is_dir() for name in LocalFolder(path / part).names()]
    kind = str(read_json(folder, "model_index.json").get("_class_name", "")) if "model_index.json" in names else None
    return pipeline_parts([*names, *below], kind)


def join_parts(reference: str, parts: Mapping[str, Checkpoint], folder: str | None) -> Checkpoint:
    """Every component of a pipeline (by folder) as one checkpoint."""
    tensors = {f"{part}/{key}": view for part, opened in parts.items() for key, view in opened.tensors.items()}
    files = tuple(file for opened in parts.values() for file in opened.files)
    metadata = {key: value for opened in parts.values() for key, value in opened.metadata.items()}
    configs = {part: opened.config or {} for part, opened in parts.items()}
    return Checkpoint(reference, files, tensors, metadata, None, configs, folder)


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _check_tensors(name: str, tensors: Mapping[str, object]) -> None:
    """A checkpoint without tensors is a mistake of whoever wrote it."""
    if not tensors:
        raise FileError("file.no-weights", f"{name} holds no tensors", facts={"file": name}, fix="use the complete checkpoint")


def open_folder(folder: Folder, reference: str) -> Checkpoint:
    """A folder whose weights are named as diffusers or transformers name them, or hold just one safetensors file."""
    names = list(folder.names())
    config = read_json(folder, "config.json") if "config.json" in names else None
    index = _pick_index(names)
    if index is None:
        adapter = read_json(folder, ADAPTER_CONFIG) if ADAPTER_CONFIG in names else None
        file, header = folder.header(_pick_single(folder.name, names))
        _check_tensors(file.path, header.tensors)
        beside = (local_file(folder.root / ADAPTER_CONFIG),) if adapter is not None and isinstance(folder, LocalFolder) else ()
        return Checkpoint(reference, (file, *beside), _views(file, header), header.metadata, config, adapter_config=adapter)
    return _open_shards(folder, reference, index, names, config)


def _open_shards(folder: Folder, reference: str, index: str, names: list[str], config: Mapping[str, Any] | None) -> Checkpoint:
    weight_map, total = weight_map_of(folder, index)
    shards = sorted(set(weight_map.values()))
    missing = [name for name in shards if name not in names]
    if missing:
        raise FileError(
            "file.missing-shard",
            f"{len(missing)} of {len(shards)} shards that the index names are not in {folder.name}",
            facts={"index": index, "missing": ", ".join(missing[:10])},
            fix="download the missing files",
        )
    tensors: dict[str, View] = {}
    files: list[WeightFile] = []
    metadata: dict[str, str] = {}
    for shard in shards:
        file, header = folder.header(shard)
        files.append(file)
        metadata |= header.metadata
        for key, view in _views(file, header).items():
            if key in tensors:
                raise FileError(
                    "file.duplicate-key",
                    f"`{key}` stands in two shards of {folder.name}",
                    facts={"folder": folder.name, "key": key, "second in": shard},
                    fix=FIX_INDEX,
                )
            tensors[key] = view
        _check_index(folder.name, index, shard, weight_map, header)
    _check_tensors(f"{folder.name}/{index}", tensors)
    found = sum(view.nbytes for view in tensors.values())
    if total is not None and total != found:
        raise FileError(
            "file.bad-index",
            f"{index} says {total:,} bytes of tensors, the shards hold {found:,}",
            facts={"folder": folder.name, "expected": f"{total:,}", "found": f"{found:,}"},
            fix=FIX_INDEX,
        )
    return Checkpoint(reference, tuple(files), tensors, metadata, config)


def _check_index(folder: str, index: str, shard: str, weight_map: Mapping[str, str], header: Header) -> None:
    expected = {key for key, name in weight_map.items() if name == shard}
    absent, extra = sorted(expected - header.tensors.keys()), sorted(header.tensors.keys() - expected)
    if absent or extra:
        what = f"lacks {len(absent)} tensors that the index puts there" if absent else f"holds {len(extra)} that it does not"
        raise FileError(
            "file.bad-index",
            f"{index} does not describe {shard}: the file {what}",
            facts={"folder": folder, "index": index, "shard": shard, "key": (absent or extra)[0]},
            fix=FIX_INDEX,
        )


def _pick_index(names: list[str]) -> str | None:
    known = [f"{stem}.safetensors.index.json" for stem in STEMS]
    found = [name for name in names if ".safetensors.index" in name and name.endswith(".json")]
    return next((name for name in known if name in found), found[0] if found else None)


def _pick_single(folder: str, names: list[str]) -> str:
    weights = [name for name in names if name.endswith(".safetensors")]
    for stem in (*ADAPTER_STEMS, *STEMS) if ADAPTER_CONFIG in names else (*STEMS, *ADAPTER_STEMS):
        if f"{stem}.safetensors" in weights:
            return f"{stem}.safetensors"
    if len(weights) == 1:
        return weights[0]
    facts = {"folder": folder, "found": ", ".join(weights[:10]) or ", ".join(names[:10]) or "nothing"}
    if any("-of-" in name for name in weights):
        raise FileError(
            "file.missing-index", f"{folder} holds shards but no index", facts=facts, fix="download the *.safetensors.index.json"
        )
    if not weights:
        fix = "name the folder or file that holds the weights"
        raise FileError("file.no-weights", f"{folder} holds no safetensors file", facts=facts, fix=fix)
    raise FileError("file.ambiguous", f"{folder} holds {len(weights)} safetensors files and no index", facts=facts, fix="name one of them")


def _views(file: WeightFile, header: Header) -> dict[str, View]:
    views: dict[str, View] = {}
    for key, entry in header.tensors.items():
        view = View(entry.shape, ())
        extent = Extent(file.path, header.data_start + entry.start, view.count, entry.dtype)
        views[key] = View(entry.shape, (extent,))
    return views


def _sibling(path: Path, stems: Collection[str], name: str) -> Mapping[str, Any] | None:
    """The JSON file `name` beside weights that are called as it expects, None where there is none."""
    if path.stem not in stems or not (path.parent / name).exists():
        return None
    return read_json(LocalFolder(path.parent), name)
