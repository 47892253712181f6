"""Full: the difference itself, of a weight, a bias or a norm (LyCORIS' full and norm modules, extractions).

dW = scale * diff       diff of the weight's shape; files give no alpha, so the scale is 1
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fluxsmith.adapters.algorithms.base import Algorithm, Rows, Settings

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DIFF"]


def _delta(factors: Mapping[str, Tensor], settings: Settings, rows: Rows, weight: Tensor | None) -> Tensor:
    return (factors["diff"] * settings["scale"]).reshape(rows.count, *rows.shape[1:])


DIFF = Algorithm(
    name="diff",
    title="full difference",
    paper="arXiv:2309.14859",
    stored={"lycoris": {"diff": "diff"}},
    aliases={"w_norm": "diff"},
    biases={"diff_b": "diff", "b_norm": "diff"},
    delta=_delta,
    shape=lambda shapes: shapes["diff"],
    by_rows=lambda shapes, settings: frozenset({"diff"}),
)
