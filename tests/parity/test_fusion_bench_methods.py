"""FusionBench's methods as oracles: what it scored on vision models, on tensors."""

# pyright: reportUnknownMemberType=false
from importlib import import_module
from typing import Any

import pytest
import torch

import fluxsmith as fs
from support.in_memory import as_models, merged, tuned

pytest.importorskip("fusion_bench", reason="FusionBench is an oracle and is not installed (pip install fusion-bench)")

SHAPES = {"matrix": (40, 25), "vector": (60,)}


def module(name: str) -> Any:
    return import_module(f"fusion_bench.method.{name}")


def test_magmax() -> None:
    base, *models = tuned(3, seed=31, shapes=SHAPES)
    deltas = [{name: model[name] - base[name] for name in base} for model in models]
    expected = module("magmax.magmax")._magmax_select(deltas)
    found = merged(fs.magmax(*as_models([base, *models]), scale=0.5))
    assert all(torch.allclose(found[name], base[name] + 0.5 * expected[name], atol=1e-6) for name in base)


def test_magmax_of_opposite_changes_does_not_depend_on_the_order() -> None:
    """FusionBench takes the later of x and -x, as the authors' code does; here it is the positive one."""
    select = module("magmax.magmax")._magmax_select
    up, down = {"x": torch.ones(3)}, {"x": -torch.ones(3)}
    assert torch.equal(select([up, down])["x"], down["x"])
    zero = {"x": torch.zeros(3)}
    for order in ([zero, up, down], [zero, down, up]):
        assert torch.equal(merged(fs.magmax(*as_models(order)))["x"], up["x"])


@pytest.mark.parametrize("agreeing", [1, 2, 3])
@pytest.mark.parametrize("strictness", [0.2, 0.6])
def test_consensus(strictness: float, agreeing: int) -> None:
    base, *models = tuned(3, seed=32, shapes=SHAPES)
    found = merged(fs.consensus(*as_models([base, *models]), strictness=strictness, agreeing=agreeing, scale=0.7))
    for name in base:
        origin = base[name].flatten()
        tuned_vectors = torch.stack([model[name].flatten() for model in models])
        vectors = tuned_vectors - origin
        masks = module("tall_mask.utils").generate_task_masks(vectors, tuned_vectors, origin, tall_mask_lambda=strictness)
        mask = (masks.float().sum(0) >= agreeing).float()
        expected = origin + 0.7 * mask * vectors.sum(0)
        differ = (found[name].flatten() - expected).abs() > 1e-5
        assert differ.float().mean() < 0.002, name  # an element may lie just on the edge of a mask
