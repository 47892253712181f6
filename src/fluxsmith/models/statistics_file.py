"""Statistics of a model as a safetensors file that recipes take with `holds: param`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fluxsmith.engine.inputs import STATISTICS
from fluxsmith.errors import UsageError
from fluxsmith.io.shards import place
from fluxsmith.io.writer import FileSink

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["write_statistics"]


def write_statistics(
    target: Path,
    kind: str,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    metadata: Mapping[str, str],
    force: bool = False,
) -> int:
    """Write tensors in fp32 as they come; `shapes` names all of them beforehand. The size of the file in bytes.

    Raises UsageError where the target is no safetensors file or exists (without `force`), ResourceError where the disk
    has no room; the target is then as it was.
    """
    if target.suffix != ".safetensors":
        raise UsageError("usage.output", f"{target} does not end in .safetensors", fix=f"-o {target.with_suffix('.safetensors')}")
    if target.is_dir() or (os.path.lexists(target) and not force):
        raise UsageError("output.exists", f"{target} exists", fix="--force replaces a file, or give another path with -o")
    facts = {**metadata, STATISTICS: kind}
    (file,) = place([(name, "F32", shape) for name, shape in shapes.items()], stem=target.stem, shard_size=None, metadata=facts)
    sink = FileSink(target, [file], folder=False)
    try:
        sink.open(keep=False)
        for name, tensor in tensors:
            sink.write(0, file.tensors[name].start, tensor.float().contiguous().reshape(-1).numpy().data.cast("B"))
        sink.sync()
        sink.commit(facts, {})
    except BaseException:
        sink.abandon()
        raise
    return file.size
