"""Who is merged, and what a call of a method looks like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluxsmith.methods import Method
from fluxsmith.recipes.expressions import Expression, model

__all__ = ["Call", "Family", "pocket_family"]


@dataclass(frozen=True)
class Family:
    """A base and what was trained from it, as nodes of a recipe."""

    base: Expression
    tuned: Sequence[Expression]


Call = Callable[[Method, Family, Mapping[str, Any]], Expression]
"""Makes the node of a method from a family and the method's options.

A method that needs more than weights (importances, statistics of activations) has its own, see `with_statistics`.
"""


def pocket_family(base: str, tuned: Sequence[str]) -> Family:
    """The pocket checkpoints of these names."""
    return Family(model(f"pocket/{base}", name=base), [model(f"pocket/{name}", name=name) for name in tuned])
