"""Writing an adapter: modules as tensors, one after another, to a file in a dialect, all or nothing.

The sizes of modules need not be known beforehand (ranks come out of a decomposition): their bytes go to a spool beside
the target as they come, and are laid out when the last one is there. So one module is in memory at a time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fluxsmith.adapters.dialects import Dialect
from fluxsmith.adapters.reading.sidecars import DIFFUSERS
from fluxsmith.adapters.writing.scales import numbered, with_scale
from fluxsmith.adapters.writing.sidecar import sidecars
from fluxsmith.adapters.writing.spelling import Speller
from fluxsmith.errors import FluxsmithError, IncompatibleError, UsageError
from fluxsmith.io.dtypes import DTYPES, dtype_from_name
from fluxsmith.io.shards import OutputFile, place
from fluxsmith.io.writer import FileSink, disk_error

if TYPE_CHECKING:
    from torch import Tensor

    from fluxsmith.adapters.tensors import ModuleTensors, Outline

__all__ = ["AdapterWriter", "Written"]

CHUNK = 1 << 22


@dataclass(frozen=True)
class Written:
    """An adapter that has been written: how many modules and tensors, the bytes of its file, and what a user should know."""

    path: Path
    dialect: str
    modules: int
    tensors: int
    nbytes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Spooled:
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class AdapterWriter:
    """An adapter while it is written.

        with AdapterWriter(path, DIALECTS["kohya"], "flux1") as writer:
            writer.add(module)
            written = writer.commit({"fluxsmith.recipe": ...})

    `target` is a file, or a folder where the dialect says so. `dtype` (a name such as bf16) rounds every factor to one
    type; None keeps each as it is. Without `commit` nothing is left. Raises UsageError where the target exists and is
    not to be replaced, ResourceError where the disk does not take it.
    """

    def __init__(self, target: Path, dialect: Dialect, family: str, *, dtype: str | None = None, force: bool = False) -> None:
        self.target, self.dialect, self.family = target, dialect, family
        self.folder = dialect.writing is not None and dialect.writing.folder
        self._check_target(force)
        self._dtype = dtype_from_name(dtype).torch if dtype else None
        self._speller = Speller(dialect, family)
        self._sink = FileSink(target, (), folder=self.folder)
        self._entries: dict[str, _Spooled] = {}
        self._modules: list[tuple[str, Outline]] = []
        self._at = 0
        self._done = self._closing = False
        self._biases: list[ModuleTensors] = []
        self.notes: list[str] = []
        try:
            self._spool = open(self._sink.root / "spool", "w+b")  # noqa: SIM115
        except OSError as error:
            self._sink.abandon()
            raise disk_error(error, target) from None

    def _check_target(self, force: bool) -> None:
        if not os.path.lexists(self.target):
            return
        if not force:
            raise UsageError("output.exists", f"{self.target} exists", fix="--force replaces it, or give another path with -o")
        is_adapter = (self.target / "adapter_config.json").is_file()
        if self.target.is_dir() != self.folder or (self.folder and not is_adapter and any(self.target.iterdir())):
            what = "no adapter" if self.folder else "a folder"
            raise UsageError("output.not-replaceable", f"{self.target} is {what}", fix="give another path with -o")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._spool.close()
        if not self._done:
            self._sink.abandon()

    def add(self, module: ModuleTensors) -> None:
        """Write a module. Its scale goes where the dialect has it; where it has no place for one, into a factor.

        Raises IncompatibleError where the dialect cannot hold the module.
        """
        import torch

        if module.target.stored.endswith(".bias") and module.algorithm == "lora" and not self._closing:
            self._biases.append(module)  # its scale is that of its weight, which may still come
            return
        name, keys = self._speller.keys(module)
        module, numbers = numbered(module, self.dialect, name)
        for role, factor in module.factors.items():
            self._put(keys[role], factor if self._dtype is None else self._rounded(factor, keys[role]))
        for last, value in numbers.items():
            self._put(self._speller.number_key(module, last), torch.tensor(value, dtype=torch.float32))
        self._modules.append((name, module.outline))

    def _rounded(self, factor: Tensor, key: str) -> Tensor:
        """In the type that was asked for; raises IncompatibleError where that cannot hold it."""
        import torch

        rounded = factor.to(getattr(torch, str(self._dtype)))
        if bool((rounded.isinf() & ~factor.isinf()).any()):
            raise IncompatibleError(
                "adapter.overflow",
                f"`{key}` has values that are too large for {self._dtype}",
                facts={"file": self.target, "largest": f"{float(factor.abs().max()):g}"},
                fix="--dtype bf16, or none",
            )
        return rounded

    def _add_biases(self) -> None:
        """Biases of LoRA beside their weights: readers multiply both by the scale of the weight."""
        self._closing = True
        scales = {name: module.settings.get("scale", 1.0) for name, module in self._modules}
        for module in self._biases:
            own = scales.get(self._speller.name(module.target), 1.0)
            self.add(with_scale(module, own))

    def _put(self, key: str, tensor: Tensor) -> None:
        import torch

        if key in self._entries:
            raise FluxsmithError("adapter.duplicate-key", f"two modules would be written as `{key}`", facts={"file": self.target})
        names = {dtype.torch: name for name, dtype in DTYPES.items() if dtype.torch}
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b""
        try:
            self._spool.write(raw)
        except OSError as error:
            raise disk_error(error, self.target, len(raw)) from None
        dtype = names[str(tensor.dtype).removeprefix("torch.")]
        self._entries[key] = _Spooled(dtype, tuple(tensor.shape), self._at, self._at + len(raw))
        self._at += len(raw)

    def commit(self, metadata: Mapping[str, str]) -> Written:
        """Lay everything out, write headers and sidecars, and put it in the target's place."""
        self._add_biases()
        fields, files = sidecars(self.dialect, self._modules, self._speller.main)
        metadata = {"format": "pt", **fields, **metadata}
        if DIFFUSERS in fields and any(module.settings.get("scale", 1.0) != 1 for _, module in self._modules):
            self.notes.append(
                "the scale is in the header, which diffusers reads; for programs that read tensors only, write --to ai-toolkit"
            )
        tensors = [(key, entry.dtype, entry.shape) for key, entry in self._entries.items()]
        (file,) = place(tensors, stem="adapter_model", shard_size=None, metadata=metadata)
        sink = self._sink
        sink.files = (file,)
        try:
            self._spool.flush()
            sink.open(keep=False)
            self._copy(file)
            sink.sync()
            sink.commit(metadata, files)
        except OSError as error:
            raise disk_error(error, self.target) from None
        self._done = True
        return Written(self.target, self.dialect.name, len(self._modules), len(tensors), file.size, tuple(self.notes))

    def _copy(self, file: OutputFile) -> None:
        """From the spool, where tensors lie as they came, to their places."""
        for key, entry in file.tensors.items():
            spooled = self._entries[key]
            for at in range(spooled.start, spooled.stop, CHUNK):
                raw = os.pread(self._spool.fileno(), min(CHUNK, spooled.stop - at), at)
                self._sink.write(0, entry.start + at - spooled.start, memoryview(raw))
