"""Two checkpoints, element by element, as bf16: `python -m benchmarks.compare ONE OTHER` prints JSON.

Names may differ by ComfyUI's prefix, layouts may not. A step is the distance of two neighbouring bf16 numbers.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.opening import open_checkpoint
from fluxsmith.io.views import View
from fluxsmith.layouts.emission import COMFY_PREFIX

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Comparison", "compare"]

_TILE = 1 << 22


@dataclass
class Comparison:
    """How many elements two checkpoints share, how many of them are equal, and how far apart the others are at most."""

    tensors: int = 0
    elements: int = 0
    equal: int = 0
    most_steps: int = 0
    only_one: int = 0

    @property
    def text(self) -> str:
        """For a table."""
        if self.only_one:
            return f"{self.only_one} tensors are in one of them only"
        if self.equal == self.elements:
            return "all"
        return f"{100 * self.equal / self.elements:.4f} % (others by at most {self.most_steps} bf16 steps)"


def compare(one: Path, other: Path) -> Comparison:
    """Compare every tensor that both have."""
    a, b = _tensors(open_checkpoint(one)), _tensors(open_checkpoint(other))
    found = Comparison(only_one=len(a.keys() ^ b.keys()))
    for name in a.keys() & b.keys():
        found.tensors += 1
        if a[name].shape != b[name].shape:
            raise ValueError(f"{name}: {a[name].shape} and {b[name].shape}")
        for start in range(0, a[name].count, _TILE):
            stop = min(start + _TILE, a[name].count)
            _add(found, bits(a[name], start, stop), bits(b[name], start, stop))
    return found


def _tensors(checkpoint: Checkpoint) -> dict[str, View]:
    return {key.removeprefix(COMFY_PREFIX): view for key, view in checkpoint.tensors.items()}


def _add(found: Comparison, a: "NDArray[Any]", b: "NDArray[Any]") -> None:
    differ = a != b
    found.elements += len(a)
    found.equal += len(a) - int(differ.sum())
    if differ.any():
        found.most_steps = max(found.most_steps, int(abs(_order(a[differ]) - _order(b[differ])).max()))


def _order(values: "NDArray[Any]") -> "NDArray[Any]":
    """bf16 bit patterns as integers in the order of the numbers."""
    import numpy as np

    signed = values.astype(np.int32)
    return np.where(signed < 0x8000, signed, 0x8000 - signed)


def bits(view: View, start: int, stop: int) -> "NDArray[Any]":
    """Elements [start, stop) of a bf16 tensor as 16-bit patterns."""
    import numpy as np

    if view.dtypes != {"BF16"}:
        raise ValueError(f"{view.dtypes} where bf16 is compared")
    parts = [np.fromfile(e.file, dtype=np.uint16, count=e.count, offset=e.offset) for e in view.cut(start, stop)]
    return np.concatenate(parts)


if __name__ == "__main__":
    result = compare(Path(sys.argv[1]), Path(sys.argv[2]))
    print(json.dumps(asdict(result) | {"text": result.text}))
