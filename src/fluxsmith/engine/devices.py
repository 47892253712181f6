"""Where the arithmetic runs: one small class per kind of device, chosen by name."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from fluxsmith.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Device", "open_device"]


class Device:
    """A place for tiles. The CPU's tiles are used where they were read; others are copied there and back.

    Every worker thread has its own instance, hence its own stream and its own pinned staging memory.
    """

    def __init__(self, kind: str) -> None:
        import torch

        self.kind = kind
        self._stream = torch.cuda.Stream() if kind == "cuda" else None

    @property
    def is_cpu(self) -> bool:
        return self.kind == "cpu"

    def buffer(self, nbytes: int) -> Tensor:
        """Host memory for `nbytes` of raw data, pinned where that makes copies asynchronous."""
        import torch

        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=self.kind == "cuda")

    def session(self) -> AbstractContextManager[object]:
        """The context in which one tile is computed."""
        import torch

        return torch.cuda.stream(self._stream) if self._stream else nullcontext()

    def upload(self, host: Tensor, compute: torch.dtype) -> Tensor:
        """A tile on the device in the compute dtype; bytes cross the bus in the type in which they are stored."""
        return host.to(self.kind, non_blocking=True).to(compute)

    def download(self, tile: Tensor, host: Tensor) -> None:
        """Convert a result to the type of `host` (one rounding) and wait until it is there."""
        host.copy_(tile.to(host.dtype), non_blocking=True)
        if self._stream:
            self._stream.synchronize()


def open_device(name: str) -> str:
    """The kind of device that a name means; `auto` is the accelerator where there is one.

    Raises UsageError where the device is not on this machine.
    """
    import torch

    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    present["npu"] = bool(getattr(getattr(torch, "npu", None), "is_available", lambda: False)())
    if name == "auto":
        return next(kind for kind in ("cuda", "npu", "mps", "cpu") if present[kind])
    if not present.get(name, False):
        here = ", ".join(kind for kind, there in present.items() if there)
        raise UsageError(
            "usage.no-device", f"there is no {name} device on this machine", facts={"here": here}, fix=f"--device {here.split(',')[0]}"
        )
    return name
