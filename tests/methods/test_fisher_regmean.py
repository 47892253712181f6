"""Fisher-weighted averaging and RegMean: the formulas, their limits, and tensors that have no statistics."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import fluxsmith as fs
from fluxsmith.errors import IncompatibleError
from fluxsmith.methods import METHODS
from fluxsmith.recipes.expressions import state_dict
from support.structural import as_models, merged


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def params(**dicts: dict[str, Tensor]) -> list[Any]:
    return [state_dict(tensors, name=name, holds="param") for name, tensors in dicts.items()]


A = {"w": random(5, 8, seed=1), "bias": random(5, seed=2)}
B = {"w": random(5, 8, seed=3), "bias": random(5, seed=4)}
INPUTS = [random(40, 8, seed=5) * torch.linspace(0.1, 3, 8), random(40, 8, seed=6)]


def test_fisher_is_the_weighted_average_by_importance() -> None:
    f = {"w": random(5, 8, seed=7).square(), "bias": random(5, seed=8).square()}
    g = {"w": random(5, 8, seed=9).square(), "bias": random(5, seed=10).square()}
    out = merged(METHODS["fisher"](*as_models(a=A, b=B), importance=params(f=f, g=g), weights=[1.0, 3.0]))
    for name in A:
        expected = (f[name] * A[name] + 3 * g[name] * B[name]) / (f[name] + 3 * g[name])
        assert torch.allclose(out[name], expected, atol=1e-5), name


@settings(max_examples=15, deadline=None)
@given(st.floats(1e-6, 1e6), st.integers(0, 99))
def test_equal_importances_give_the_average(level: float, seed: int) -> None:
    same = {name: torch.full_like(tensor, level) for name, tensor in A.items()}
    out = merged(METHODS["fisher"](*as_models(a=A, b=B), importance=params(f=same, g=dict(same))))
    average = merged(METHODS["linear"](*as_models(a=A, b=B)))
    assert all(torch.allclose(out[name], average[name], atol=1e-5) for name in A)


def test_a_weight_that_one_model_alone_needs_is_its_own() -> None:
    f = {"w": torch.zeros(5, 8), "bias": torch.zeros(5)}
    f["w"][2, 3] = 1.0
    g = {"w": torch.zeros(5, 8), "bias": torch.zeros(5)}
    out = merged(METHODS["fisher"](*as_models(a=A, b=B), importance=params(f=f, g=g)))["w"]
    expected = (A["w"] + B["w"]) / 2
    expected[2, 3] = A["w"][2, 3]
    assert torch.allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_without_statistics_tensors_are_averaged(method: str) -> None:
    out = merged(METHODS[method](*as_models(a=A, b=B), weights=[1.0, 3.0]))
    assert all(torch.allclose(out[name], 0.25 * A[name] + 0.75 * B[name], atol=1e-6) for name in A)


def gram(inputs: Tensor) -> Tensor:
    return inputs.mT @ inputs / len(inputs)


def regmean(alpha: float, **options: Any) -> dict[str, Tensor]:
    grams = params(p={"w": gram(INPUTS[0])}, q={"w": gram(INPUTS[1])})
    return merged(METHODS["regmean"](*as_models(a=A, b=B), grams=grams, alpha=alpha, **options))


def objective(weight: Tensor) -> float:
    pairs = zip(INPUTS, (A, B), strict=True)
    return sum(float((inputs @ (weight - model["w"]).mT).square().mean()) for inputs, model in pairs)


def test_regmean_is_the_least_squares_solution() -> None:
    """The same by one large regression on the joined inputs and outputs."""
    out = regmean(1.0)
    x = torch.cat(INPUTS).double()
    y = torch.cat([INPUTS[0] @ A["w"].mT, INPUTS[1] @ B["w"].mT]).double()
    expected = torch.linalg.lstsq(x, y).solution.mT
    assert torch.allclose(out["w"].double(), expected, atol=1e-3)
    assert torch.allclose(out["bias"], (A["bias"] + B["bias"]) / 2)
    average = (A["w"] + B["w"]) / 2
    assert objective(out["w"]) < objective(average)
    for seed in range(20):
        assert objective(out["w"] + 0.01 * random(5, 8, seed=seed)) > objective(out["w"])


def test_without_its_off_diagonal_regmean_weighs_inputs_by_their_size() -> None:
    squares = [gram(inputs).diagonal() for inputs in INPUTS]
    expected = (A["w"] * squares[0] + B["w"] * squares[1]) / (squares[0] + squares[1])
    assert torch.allclose(regmean(0.0)["w"], expected, atol=1e-5)


def test_inputs_that_were_never_seen_are_averaged() -> None:
    blind = [inputs.clone() for inputs in INPUTS]
    for inputs in blind:
        inputs[:, 4] = 0
    grams = params(p={"w": gram(blind[0])}, q={"w": gram(blind[1])})
    out = merged(METHODS["regmean"](*as_models(a=A, b=B), grams=grams, alpha=1.0))["w"]
    assert torch.allclose(out[:, 4], (A["w"][:, 4] + B["w"][:, 4]) / 2, atol=1e-5)


def test_regmean_of_equal_models_is_the_model() -> None:
    grams = params(p={"w": gram(INPUTS[0])}, q={"w": gram(INPUTS[1])})
    out = merged(METHODS["regmean"](*as_models(a=A, b=dict(A)), grams=grams))
    assert torch.equal(out["w"], A["w"])


def test_statistics_of_one_model_alone_are_an_error(tmp_path: Path) -> None:
    save_file({"w": gram(INPUTS[0])}, tmp_path / "p.safetensors", {"fluxsmith.statistics": "regmean"})
    save_file({"other": gram(INPUTS[1])}, tmp_path / "q.safetensors", {"fluxsmith.statistics": "regmean"})
    grams = [fs.model(str(tmp_path / f"{name}.safetensors"), holds="param") for name in "pq"]
    with pytest.raises(IncompatibleError, match="q has no `w`"):
        merged(METHODS["regmean"](*as_models(a=A, b=B), grams=grams))
