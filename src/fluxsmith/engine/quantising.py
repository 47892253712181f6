"""Quantising while writing: the largest magnitude of every output tensor first, where it decides the scale, then the tiles.

The error of what is stored, ||W' - W|| / ||W||, is measured on the way: nothing is read back.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, sqrt
from typing import TYPE_CHECKING

from fluxsmith.engine.plan import Job, Target
from fluxsmith.engine.schedule import Task
from fluxsmith.engine.tiles import as_bytes
from fluxsmith.io.codecs.encoding import encode_blocks, encode_scaled, scales_of
from fluxsmith.io.dtypes import stored_type
from fluxsmith.io.writer import Sink

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["QuantisationErrors", "note_largest", "write_quantised"]


@dataclass
class QuantisationErrors:
    """How far the stored weights are from those that were to be stored, of the tensors that one run wrote.

    Tiles may be noted by several threads in any order; the sums are added in the order of the elements.
    """

    tiles: dict[str, dict[int, tuple[float, float]]] = field(default_factory=dict[str, "dict[int, tuple[float, float]]"])
    blocks: dict[str, str] = field(default_factory=dict[str, str])
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def note(self, job: Job, element: int, values: Tensor, stored: Tensor) -> None:
        """Take in elements of a job from number `element` on: as they were, and as a reader will find them (float32)."""
        difference = stored - values
        sums = float(difference.dot(difference)), float(values.dot(values))
        with self._lock:
            self.tiles.setdefault(job.tensor, {})[job.origin + element] = sums
            self.blocks[job.tensor] = job.block or job.tensor.split(".")[0]

    def __bool__(self) -> bool:
        return bool(self.tiles)

    @property
    def tensors(self) -> dict[str, float]:
        """||W' - W|| / ||W|| of every tensor, by its canonical name, the worst first."""
        found = {name: _relative([tiles]) for name, tiles in self.tiles.items()}
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    @property
    def by_block(self) -> dict[str, float]:
        """||W' - W|| / ||W|| of every block's quantised tensors together; outside of blocks by the first word of the name."""
        members: dict[str, list[Mapping[int, tuple[float, float]]]] = {}
        for name in sorted(self.tiles):
            members.setdefault(self.blocks[name], []).append(self.tiles[name])
        return {block: _relative(tiles) for block, tiles in members.items()}

    @property
    def total(self) -> float:
        """||W' - W|| / ||W|| of all quantised tensors together."""
        return _relative([self.tiles[name] for name in sorted(self.tiles)])


def _relative(tensors: list[Mapping[int, tuple[float, float]]]) -> float:
    sums = [tiles[element] for tiles in tensors for element in sorted(tiles)]
    error, size = sum(error for error, _ in sums), sum(size for _, size in sums)
    return sqrt(error / size) if size else inf if error else 0.0


def note_largest(task: Task, values: Tensor) -> None:
    """Take a tile into the largest magnitudes of the output tensors that a job fills; called from several threads."""
    for target, part in _parts(task, values):
        low, high = part.aminmax()
        task.state.note_largest(target.tensor, float(max(-low, high)))


def write_quantised(task: Task, values: Tensor, sink: Sink, errors: QuantisationErrors) -> int:
    """Write a tile of float32 values and the scales that belong to it; returns the bytes written."""
    written = 0
    for target, part in _parts(task, values):
        written += _write_part(task, target, part, sink, errors)
    return written


def _parts(task: Task, values: Tensor) -> list[tuple[Target, Tensor]]:
    """A tile's elements by the targets that they go to."""
    found: list[tuple[Target, Tensor]] = []
    for target in task.state.job.targets:
        first, last = max(target.start, task.start), min(target.start + target.count, task.stop)
        if first < last:
            found.append((target, values[first - task.start : last - task.start]))
    return found


def _write_part(task: Task, target: Target, part: Tensor, sink: Sink, errors: QuantisationErrors) -> int:
    import torch

    job = task.state.job
    first = max(target.start, task.start)
    scaling = job.scaling
    if scaling is None:
        encoded = encode_blocks(part, job.dtype)
    else:
        largest = torch.tensor([task.state.largest[target.tensor]]) if scaling.size is None else part.view(-1, scaling.size).abs().amax(1)
        scales = scales_of(largest, job.dtype, scaling.dtype)
        encoded = encode_scaled(part, scales, job.dtype)
        assert target.scale is not None
        before = (first - target.start) // scaling.size if scaling.size else 0
        file, start = target.scale
        sink.write(file, start + before * scales.itemsize, as_bytes(scales))
    data = as_bytes(encoded.stored)
    sink.write(target.file, target.offset + stored_type(job.dtype).nbytes(first - target.start), data)
    errors.note(job, first, part, encoded.values)
    return len(data)
