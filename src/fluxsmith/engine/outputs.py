"""Where the results of jobs go: files, places in them, and the small files beside them."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fluxsmith.engine.plan import Apply, Job, Load, Target
from fluxsmith.engine.storage import Beside, container_of
from fluxsmith.errors import IncompatibleError, UsageError
from fluxsmith.io.checkpoint import PARTS, Checkpoint
from fluxsmith.io.dtypes import DTYPES, stored_type
from fluxsmith.io.shards import OutputFile, place
from fluxsmith.io.writer import index_json
from fluxsmith.layouts.emission import OutputTensor, Placement

__all__ = ["COMPANIONS", "COPIED", "aim", "copied_files", "index_files", "lay_out", "turn", "with_dtype"]

#: Folders of a pipeline that hold no weights.
COMPANIONS = ("tokenizer", "tokenizer_2", "tokenizer_3", "scheduler", "feature_extractor", "safety_checker")
COPIED = (".json", ".txt", ".model", ".jinja", ".tiktoken")
_LARGEST_COPY = 64 << 20


def lay_out(
    emitted: Sequence[OutputTensor],
    dtypes: Mapping[str, str],
    *,
    output: Path | None,
    stem: str,
    shard_size: int | None,
    metadata: Mapping[str, str],
    beside: Beside,
) -> tuple[list[OutputTensor], list[OutputFile]]:
    """The output's tensors and the files that hold them and what is stored `beside` them.

    Names that begin with a component's folder (`unet/`) are a pipeline: a folder for each component, or one flat
    output where there is only one. Raises UsageError where several are to go into one file.
    """
    parts: dict[str, list[OutputTensor]] = {}
    for tensor in emitted:
        part = tensor.name.split("/")[0]
        parts.setdefault(part if part in PARTS and "/" in tensor.name else "", []).append(tensor)
    if len(parts) == 1:
        part, tensors = next(iter(parts.items()))
        flat = [replace(tensor, name=tensor.name.removeprefix(f"{part}/" if part else "")) for tensor in tensors]
        names = _stem(part) if part and not _is_file(output) else stem
        entries = _entries(flat, dtypes, beside)
        return flat, place(entries, stem=names, shard_size=shard_size, metadata=metadata, container=container_of(output))
    if output is None:
        return list(emitted), place(_entries(emitted, dtypes, beside), stem=stem, shard_size=None, metadata=metadata)
    if _is_file(output):
        raise UsageError(
            "usage.pipeline-in-a-file",
            f"{output} is one file, but a diffusers pipeline is a folder with one for each of {', '.join(parts)}",
            fix=f"give a folder: -o {output.with_suffix('')}",
        )
    files: list[OutputFile] = []
    for part, tensors in parts.items():
        entries = [(name.removeprefix(f"{part}/"), dtype, shape) for name, dtype, shape in _entries(tensors, dtypes, beside)]
        placed = place(entries, stem=_stem(part), shard_size=shard_size, metadata=metadata)
        files += [replace(file, name=f"{part}/{file.name}") for file in placed]
    return list(emitted), files


def _is_file(output: Path | None) -> bool:
    return output is not None and output.suffix in (".safetensors", ".gguf")


def _entries(tensors: Iterable[OutputTensor], dtypes: Mapping[str, str], beside: Beside) -> list[tuple[str, str, tuple[int, ...]]]:
    found: list[tuple[str, str, tuple[int, ...]]] = []
    for tensor in tensors:
        found.append((tensor.name, dtypes[tensor.placements[0].source], tensor.shape))
        found += [(extra.name, extra.dtype, extra.shape) for extra in beside.get(tensor.name, ())]
    return found


def _stem(part: str) -> str:
    """What transformers and diffusers call the weights of a component."""
    return "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"


def turn(jobs: Sequence[Job], emitted: Sequence[OutputTensor]) -> list[Job]:
    """The jobs of matrices that the output stores transposed, with that as their last step.

    One that is only copied is read the other way round instead.
    """
    turned = {placement.source for tensor in emitted if tensor.transposed for placement in tensor.placements}
    return [_turned(job) if job.tensor in turned else job for job in jobs]


def _turned(job: Job) -> Job:
    step = job.program[-1]
    if len(job.program) > 1 or not isinstance(step, Load):
        return replace(job, program=(*job.program, Apply("transpose", (len(job.program) - 1,), {})))
    view = replace(step.view, shape=step.view.shape[::-1], transposed=not step.view.transposed)
    action = "copied" if view.stores(job.dtype) and not view.transposed else "converted"
    return replace(job, program=(Load(step.model, view),), action=action)


def aim(jobs: Sequence[Job], emitted: Sequence[OutputTensor], files: Sequence[OutputFile], beside: Beside) -> list[Job]:
    """Give every job the places in the output files where its elements and their scales go.

    Raises IncompatibleError where several jobs would have to find one scale together.
    """
    places = {
        "/".join(filter(None, (file.name.rpartition("/")[0], key))): (number, entry)
        for number, file in enumerate(files)
        for key, entry in file.tensors.items()
    }
    by_source: dict[str, list[tuple[Placement, int]]] = {}
    for index, tensor in enumerate(emitted):
        for placement in tensor.placements:
            by_source.setdefault(placement.source, []).append((placement, index))
    scales = {name: next((extra.name for extra in extras if extra.data is None), "") for name, extras in beside.items()}
    aimed: list[Job] = []
    for job in jobs:
        targets: list[Target] = []
        for placement, index in sorted(by_source[job.tensor], key=lambda pair: pair[0].start):
            number, entry = places[emitted[index].name]
            scale = places[scales[emitted[index].name]] if job.scaling else None
            target = _target(job, placement, (number, entry.start), scale and (scale[0], scale[1].start))
            if target is not None:
                targets.append(replace(target, tensor=index))
        aimed.append(replace(job, targets=tuple(targets)))
    _check_scales(aimed, emitted)
    return aimed


def _target(job: Job, placement: Placement, data: tuple[int, int], scale: tuple[int, int] | None) -> Target | None:
    """Where the elements of a placement go that are a job's; None where it has none of them. `data` and `scale` are where
    the output tensor and its scales begin (file, byte).
    """
    first, last = max(placement.start, job.origin), min(placement.start + placement.count, job.origin + job.count)
    if first >= last:
        return None
    at = placement.at + first - placement.start  # in the output tensor
    if scale is not None and job.scaling and job.scaling.size:
        scale = scale[0], scale[1] + DTYPES[job.scaling.dtype].nbytes(at // job.scaling.size)
    return Target(data[0], data[1] + stored_type(job.dtype).nbytes(at), first - job.origin, last - first, scale)


def _check_scales(jobs: Sequence[Job], emitted: Sequence[OutputTensor]) -> None:
    """Raise where a tensor with one scale for all of it is made by several jobs, none of which sees its largest value."""
    makers: dict[int, int] = {}
    for number, job in enumerate(jobs):
        if job.scaling is None or job.scaling.size is not None:
            continue
        for index in {target.tensor for target in job.targets}:
            if makers.setdefault(index, number) != number:
                raise IncompatibleError(
                    "output.scale-of-several-parts",
                    f"`{emitted[index].name}` has one scale, but the recipe treats its parts (q, k, v, mlp) in different ways",
                    facts={"key": emitted[index].name},
                    fix="--dtype fp8_block, which has a scale per 64 weights, or --layout diffusers, which stores the parts as tensors",
                )


def index_files(files: Sequence[OutputFile]) -> dict[str, str]:
    """The index of every component that is stored in several files."""
    found: dict[str, str] = {}
    for folder in dict.fromkeys(file.name.rpartition("/")[0] for file in files):
        own = [replace(file, name=file.name.rpartition("/")[2]) for file in files if file.name.rpartition("/")[0] == folder]
        if len(own) > 1:
            stem = own[0].name.split("-0")[0]
            found["/".join(filter(None, (folder, f"{stem}.safetensors.index.json")))] = index_json(own)
    return found


def copied_files(checkpoint: Checkpoint, folders: Collection[str]) -> dict[str, str]:
    """Other files of a local folder that belong to its model (tokenizers, schedulers, configs): name -> path.

    Those in the folder of a component that is not among the output's `folders` are left out.
    """
    if checkpoint.folder is None:
        return {}
    root = Path(checkpoint.folder)
    return {
        str(path.relative_to(root)): str(path)
        for path in sorted(root.rglob("*"))
        if path.suffix in COPIED
        and not (checkpoint.quantised and path.name == "config.json")  # it says how the weights were quantised
        and (path.relative_to(root).parts[0] not in PARTS or path.relative_to(root).parts[0] in folders)
        and not path.name.endswith(".index.json")
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
        and path.stat().st_size <= _LARGEST_COPY
    }


def with_dtype(config: Mapping[str, Any], dtype: str | None) -> str:
    """A transformers config as text, saying the type of the weights where that was changed."""
    torch_name = DTYPES[dtype].torch if dtype else None
    fields = dict(config)
    for key in ("torch_dtype", "dtype"):
        if torch_name and key in fields:
            fields[key] = torch_name
    return json.dumps(fields, indent=2) + "\n"
