"""State dicts in memory: random ones to merge, recipes over them, and results, without files."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fluxsmith.engine import memory
from fluxsmith.engine.in_memory import load_state_dict
from fluxsmith.recipes.expressions import Expression, Model, state_dict
from fluxsmith.recipes.recipe import Recipe

__all__ = ["SHAPES", "Tensors", "as_models", "by_hand", "merged", "small_tiles", "tuned", "vector"]

Tensors = dict[str, Tensor]

#: A matrix, a wide one, a vector, a convolution, one row and a scalar.
SHAPES: Mapping[str, tuple[int, ...]] = {
    "matrix": (37, 24),
    "wide": (3, 700),
    "vector": (53,),
    "conv": (8, 5, 3, 3),
    "row": (1, 40),
    "scalar": (),
}


def tuned(count: int, *, seed: int = 0, spread: float = 0.02, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> list[Tensors]:
    """A random base, and `count` models near it."""
    generator = torch.Generator().manual_seed(seed)
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    models = [{name: t + spread * torch.randn(t.shape, generator=generator) for name, t in base.items()} for _ in range(count)]
    return [base, *models]


def vector(*numbers: float) -> Tensors:
    """A state dict of one vector, for examples that are worked out by hand."""
    return {"x": torch.tensor(numbers, dtype=torch.float32)}


def as_models(tensors: Sequence[Tensors], holds: Any = "weight") -> list[Model]:
    """State dicts as models called m0, m1, ..."""
    return [state_dict(found, name=f"{holds[0]}{i}", holds=holds) for i, found in enumerate(tensors)]


def merged(wish: Expression, *, seed: int = 0) -> Tensors:
    """The tensors of a wish over state dicts, in the type of the inputs."""
    return load_state_dict(Recipe(wish, structural=True, seed=seed))[0]


def by_hand(method: Callable[..., Expression], *vectors: Sequence[float], **options: Any) -> list[float]:
    """A method on vectors of numbers."""
    return merged(method(*as_models([vector(*numbers) for numbers in vectors]), **options))["x"].tolist()


def small_tiles(monkeypatch: Any) -> None:
    """Let tiny tensors take many tiles."""
    monkeypatch.setattr(memory, "TILE", 1 << 7)
    monkeypatch.setattr(memory, "SMALLEST", 1 << 6)
