"""Evaluating a program on a tile: read the inputs' bytes, convert them once, apply the methods."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fluxsmith.engine.adapting import delta_tile
from fluxsmith.engine.memory import row_elements
from fluxsmith.engine.plan import Adapt, Apply, Fill, Job, Load, uses
from fluxsmith.errors import FileError, FluxsmithError, MethodError
from fluxsmith.io.codecs.decoding import decode
from fluxsmith.io.codecs.fp8 import values_of_fp8
from fluxsmith.io.dtypes import DTYPES
from fluxsmith.io.memory import buffer, is_memory
from fluxsmith.io.sniff import reading
from fluxsmith.methods import Method, find_method
from fluxsmith.methods.masks import CounterMasks

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fluxsmith.engine.devices import Device
    from fluxsmith.io.views import Extent, View

__all__ = ["Files", "Workspace"]


class Files:
    """Open input files, shared by all threads; positioned reads need no lock."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}
        self._lock = threading.Lock()

    def fd(self, path: str) -> int:
        """The descriptor of a file, opened on first use."""
        with self._lock:
            if path not in self._fds:
                with reading(path):
                    self._fds[path] = os.open(path, os.O_RDONLY)
            return self._fds[path]

    def read(self, view: View, start: int, stop: int, into: memoryview) -> None:
        """Bytes of elements [start, stop) of a view without codecs, one extent after another.

        Raises FileError where a file has become shorter.
        """
        at = 0
        for extent in view.cut(start, stop):
            self.read_extent(extent, into[at : at + extent.nbytes])
            at += extent.nbytes

    def read_extent(self, extent: Extent, into: memoryview) -> None:
        """Bytes of a plain extent; raises FileError where its file has become shorter."""
        at, end, offset = 0, extent.nbytes, extent.offset
        if is_memory(extent.file):
            into[:end] = buffer(extent.file)[offset : offset + end]
            return
        while at < end:
            with reading(extent.file):
                got = os.preadv(self.fd(extent.file), [into[at:end]], offset + at)
            if got <= 0:
                raise FileError("file.truncated", f"{extent.file} became shorter while it was read", facts={"file": extent.file})
            at += got

    def expect(self, view: View, start: int, stop: int) -> None:
        """Tell the kernel that these elements are needed soon."""
        if hasattr(os, "posix_fadvise"):
            for extent in view.cut(start, stop):
                if is_memory(extent.file):
                    continue
                stored = extent.stored
                os.posix_fadvise(self.fd(stored.file), stored.offset, stored.nbytes, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


class Workspace:
    """One thread's memory for one tile at a time; buffers are kept from tile to tile."""

    def __init__(self, files: Files, device: Device, compute: str, seed: int) -> None:
        import torch

        self.files, self.device, self._seed = files, device, seed
        self.compute: torch.dtype = getattr(torch, DTYPES[compute].torch or "float32")
        self._buffers: dict[object, Tensor] = {}
        #: Adapters that have changed something so far.
        self.touched: set[str] = set()

    def forget(self) -> None:
        """Let all buffers go: those of whole tensors are too large to be kept for tiles."""
        self._buffers.clear()

    def exact(self) -> Workspace:
        """The same memory for tiles that are only converted: through fp32, not rounded to the type of the arithmetic."""
        import torch

        space = copy(self)
        space.compute = torch.float32
        return space

    def raw(self, slot: object, nbytes: int) -> Tensor:
        """The first `nbytes` of a named buffer of bytes, made larger where it has to be."""
        buffer = self._buffers.get(slot)
        if buffer is None or buffer.numel() < nbytes:
            buffer = self._buffers[slot] = self.device.buffer(nbytes)
        return buffer[:nbytes]

    def typed(self, slot: object, count: int, dtype: str) -> Tensor:
        """A named buffer seen as `count` elements of a type."""
        import torch

        return self.raw(slot, DTYPES[dtype].nbytes(count)).view(getattr(torch, DTYPES[dtype].torch or "uint8"))

    def load(self, slot: object, view: View, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of a view in the compute dtype, on the device; a transposed view is read whole for that."""
        if view.transposed:
            stored = self.load(slot, replace(view, transposed=False), 0, view.count)
            return stored.reshape(view.shape[::-1]).transpose(0, 1).reshape(-1)[start:stop]
        extents = list(view.cut(start, stop))
        if len({extent.dtype for extent in extents}) == 1 and not any(extent.codec for extent in extents):
            return self._load_plain(slot, view, start, stop, extents[0].dtype)
        if len(extents) == 1:
            return self._load_coded(slot, extents[0])
        return self._load_mixed(slot, extents)

    def _load_plain(self, slot: object, view: View, start: int, stop: int, dtype: str) -> Tensor:
        import torch

        stored = self.typed(slot, stop - start, dtype)
        self.files.read(view, start, stop, as_bytes(stored))
        if not self.device.is_cpu:
            return self.device.upload(stored, self.compute)
        if stored.dtype == self.compute:
            return stored
        values = values_of_fp8(stored.view(torch.uint8), stored.dtype) if dtype in ("F8_E4M3", "F8_E5M2") else stored
        return self._compute_buffer((slot, "compute"), stop - start).copy_(values)

    def _load_coded(self, slot: object, extent: Extent) -> Tensor:
        """Quantised elements, decoded on the CPU, wherever the arithmetic is done."""
        values = decode(
            extent, lambda e, into: self.files.read_extent(e, as_bytes(into)), lambda name, nbytes: self.raw((slot, name), nbytes)
        )
        if not self.device.is_cpu:
            return self.device.upload(values, self.compute)
        if values.dtype == self.compute:
            return values
        return self._compute_buffer((slot, "compute"), extent.count).copy_(values)

    def _load_mixed(self, slot: object, extents: Sequence[Extent]) -> Tensor:
        """Extents of different types or codecs (a fused tensor stored in pieces), converted one by one."""
        from fluxsmith.io.views import View as Piece

        count = sum(extent.count for extent in extents)
        whole = self._compute_buffer((slot, "compute"), count)
        at = 0
        for extent in extents:
            piece = self.load((slot, "piece"), Piece((extent.count,), (extent,)), 0, extent.count)
            whole[at : at + extent.count].copy_(piece)
            at += extent.count
        return whole if self.device.is_cpu else whole.to(self.device.kind)

    def _compute_buffer(self, slot: object, count: int) -> Tensor:
        return self.raw(slot, count * self.compute.itemsize).view(self.compute)

    def evaluate(
        self, job: Job, start: int, stop: int, measured: Mapping[int, Mapping[str, Any]], upto: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Results of the steps `upto` (None: the last) of a job's program on elements [start, stop).

        `measured` has the statistics of steps that need them. Each step is computed once, however often it is used.
        """
        wanted = [len(job.program) - 1] if upto is None else list(upto)
        values: dict[int, Tensor] = {}
        # No recursion through closures here: their reference cycles would keep tiles alive until a garbage collection.
        for index in _needed(job, wanted):
            values[index] = self._step(job, index, start, stop, measured, values)
        return [values[index] for index in wanted]

    def _step(
        self, job: Job, index: int, start: int, stop: int, measured: Mapping[int, Mapping[str, Any]], values: Mapping[int, Tensor]
    ) -> Tensor:
        import torch

        step = job.program[index]
        if isinstance(step, Load):
            whole = start == 0 and stop == job.count
            other = whole and step.view.count != job.count  # a part of a whole-tensor method, with its own length
            first, last = (0, step.view.count) if other else (start, stop)
            return self.load(index, step.view, first, last)
        if isinstance(step, Fill):
            return torch.full((stop - start,), step.value, dtype=self.compute, device=self.device.kind)
        if isinstance(step, Adapt):
            return delta_tile(self, step, index, start, stop, None if step.base is None else values[step.base])
        method = find_method(step.method)
        inputs = [self._shaped(job, method, i, values[i]) for i in step.inputs]
        options = dict(step.options) | dict(measured.get(index, {})) | self.drawn(job, index, start)
        for name, used in step.tensors.items():
            one = isinstance(used, int)
            options[name] = (
                self._shaped(job, method, used, values[used]) if one else [self._shaped(job, method, i, values[i]) for i in used]
            )
        return _call(method, inputs, options, job, self.compute)

    def given(self, job: Job, index: int, start: int, stop: int, measured: Mapping[int, Mapping[str, Any]]) -> list[Tensor]:
        """What the method of step `index` is given on elements [start, stop), in the shape in which it sees it."""
        step = job.program[index]
        assert isinstance(step, Apply)
        method = find_method(step.method)
        tiles = self.evaluate(job, start, stop, measured, step.inputs)
        return [self._shaped(job, method, i, tile) for i, tile in zip(step.inputs, tiles, strict=True)]

    def drawn(self, job: Job, index: int, start: int) -> dict[str, CounterMasks]:
        """The random masks of step `index` for a tile that begins at element `start`, by the name of their parameter."""
        step = job.program[index]
        name = find_method(step.method).random if isinstance(step, Apply) else None
        return {name: CounterMasks(self._seed, job.tensor, _stream(job, index), job.origin + start)} if name else {}

    def _shaped(self, job: Job, method: Method, index: int, tile: Tensor) -> Tensor:
        """A step's result as the method sees it: flat, as rows, or in its shape."""
        if method.whole:
            step = job.program[index]
            return tile.reshape(step.view.shape if isinstance(step, Load) else job.shape)
        return tile.reshape(-1, row_elements(job)) if method.rows else tile


def as_bytes(tensor: Tensor) -> memoryview:
    """A contiguous CPU tensor as writable memory."""
    import torch

    return tensor.view(torch.uint8).numpy().data


def _needed(job: Job, wanted: Sequence[int]) -> list[int]:
    """The steps that the wanted ones need, in order; a step's inputs come before it in a program."""
    needed = set(wanted)
    for index in range(max(wanted), -1, -1):
        step = job.program[index]
        if index in needed:
            needed.update(uses(step))
    return sorted(needed)


def _stream(job: Job, index: int) -> int:
    """The number of a random step among the random steps of its program."""
    steps = job.program[:index]
    return sum(isinstance(step, Apply) and find_method(step.method).random is not None for step in steps)


def _call(method: Method, inputs: Sequence[Tensor], options: Mapping[str, Any], job: Job, compute: torch.dtype) -> Tensor:
    """Apply a method and check what comes back, as users write methods too; the result is flat.

    Raises MethodError naming the method and the tensor where it raises, or gives another shape or type.
    """
    import torch

    facts = {"method": method.name, "key": job.tensor}
    try:
        result = method.function(*inputs, **options)
    except FluxsmithError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise MethodError(
            "method.raised",
            f"method {method.name} stopped with {type(error).__name__}: {error}",
            facts={**facts, "at": f"{last.filename}:{last.lineno}: {last.line}", "given": ", ".join(str(list(i.shape)) for i in inputs)},
            fix="mend the method; nothing was written",
        ) from error
    expected = job.count if method.whole else inputs[0].numel()
    if not isinstance(result, torch.Tensor) or result.numel() != expected:
        found = list(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        raise MethodError(
            "method.wrong-shape",
            f"method {method.name} returned {found} where {list(inputs[0].shape)} is expected",
            facts=facts,
            fix="return a tensor of the inputs' shape",
        )
    if result.dtype not in (compute, torch.float32):  # float32 where a method keeps more than half types hold
        found, given = (str(dtype).removeprefix("torch.") for dtype in (result.dtype, compute))
        raise MethodError(
            "method.wrong-dtype",
            f"method {method.name} returned {found}, its inputs are {given}",
            facts=facts,
            fix="return a tensor of the inputs' type",
        )
    return result.reshape(-1)
