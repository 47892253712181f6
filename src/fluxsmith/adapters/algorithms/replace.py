"""Values that take the place of the base's (the norms of BFL's control adapters; `set_weight` of ComfyUI; PEFT's
layers that were trained whole, which its dialect calls by these names).

dW = value - W
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fluxsmith.adapters.algorithms.base import Algorithm, Rows, Settings

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["REPLACE"]


def _delta(factors: Mapping[str, Tensor], settings: Settings, rows: Rows, weight: Tensor | None) -> Tensor:
    assert weight is not None
    return factors["value"].reshape(weight.shape) - weight


REPLACE = Algorithm(
    name="replace",
    title="replacement",
    paper="",
    stored={"peft": {"value": "scale"}},
    aliases={"set_weight": "value"},
    biases={"set_bias": "value"},
    numbers={},
    delta=_delta,
    shape=lambda shapes: shapes["value"],
    reads=lambda shapes: "rows",
    by_rows=lambda shapes, settings: frozenset({"value"}),
)
