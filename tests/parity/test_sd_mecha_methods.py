"""sd-mecha's methods as oracles, one by one, on tensors; where it is wrong, the difference is asserted."""

# pyright: reportUnknownMemberType=false
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

import fluxsmith as fs
from fluxsmith.recipes.expressions import Expression
from support.in_memory import Tensors, as_models, merged, tuned

pytest.importorskip("sd_mecha", reason="sd-mecha is an oracle and is not installed (pip install sd-mecha)")

SHAPES = {"matrix": (37, 24), "wide": (3, 700), "vector": (53,), "conv": (8, 5, 3, 3)}


def peer(module: str, name: str) -> Callable[..., Tensor]:
    """A function of sd-mecha on plain tensors."""
    found: Any = getattr(import_module(f"sd_mecha.extensions.builtin.merge_methods.{module}"), name)
    return getattr(found, "__wrapped__", found)


def near(found: Tensors, expected: Callable[..., Any], *inputs: Tensors, tolerance: float = 3e-6) -> None:
    """Every tensor of a result is what a function of sd-mecha gives for the inputs' tensors."""
    for name in found:
        wanted = expected(*(tensors[name].clone() for tensors in inputs))
        assert (found[name] - wanted).abs().max() < tolerance, name


@pytest.fixture(scope="module")
def inputs() -> list[Tensors]:
    return tuned(3, seed=21, spread=0.5, shapes=SHAPES)


@pytest.fixture
def models(inputs: list[Tensors]) -> list[Expression]:
    return list(as_models(inputs))


def number(value: float) -> Tensor:
    return torch.tensor(value)


@pytest.mark.parametrize("name", ["train_difference_mask", "add_opposite_mask", "add_strict_opposite_mask"])
def test_masks(name: str, inputs: list[Tensors], models: list[Expression]) -> None:
    c, a, b, _ = models
    found = merged(fs.add_difference(a, b, c, alpha=getattr(fs, name)(a, b, c, alpha=0.7)))
    mask = peer("linear", name)
    near(found, lambda c, a, b: a.addcmul(b - c, mask(a, b, c, number(0.7))), *inputs[:3], tolerance=1e-5)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_perpendicular(inputs: list[Tensors], models: list[Expression], alpha: float) -> None:
    c, a, b, _ = models
    component = peer("linear", "perpendicular_component")
    near(merged(fs.perpendicular(a, b, c, alpha=alpha)), lambda c, a, b: a + alpha * component(a - c, b - c), *inputs[:3])


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0])
def test_geometric_sum(inputs: list[Tensors], models: list[Expression], alpha: float) -> None:
    function = peer("linear", "geometric_sum")
    near(merged(fs.geometric_sum(*models[1:3], alpha=alpha)), lambda a, b: function(a, b, number(alpha)), *inputs[1:3])


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_multiply_quotient(inputs: list[Tensors], models: list[Expression], alpha: float) -> None:
    function = peer("linear", "multiply_quotient")
    found = merged(fs.multiply_quotient(*models[:3], alpha=alpha))
    for name in found:
        expected = function(*(m[name] for m in inputs[:3]), alpha=number(alpha))
        assert torch.allclose(found[name], expected, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("name", ["add_cosine_a", "add_cosine_b"])
@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_cosine(name: str, alpha: float, inputs: list[Tensors], models: list[Expression]) -> None:
    function = peer("cosine", name)
    near(merged(getattr(fs, name)(*models[1:3], alpha=alpha)), lambda a, b: function(a, b, number(alpha)), *inputs[1:3])


@pytest.mark.parametrize("stiffness", [0.0, 0.4, 1.0])
def test_clamp(inputs: list[Tensors], models: list[Expression], stiffness: float) -> None:
    function = peer("limiting", "clamp")
    near(merged(fs.clamp(*models, stiffness=stiffness)), lambda a, *b: function(a, *b, stiffness=stiffness), *inputs)


@pytest.mark.parametrize(("width", "offset"), [(0.5, 0.0), (0.4, 0.3), (0.5, 0.8), (1.0, 0.0), (-0.3, 0.1), (0.3, -0.2)])
@pytest.mark.parametrize("name", ["tensor_sum", "top_k_tensor_sum"])
def test_regions(name: str, width: float, offset: float, inputs: list[Tensors], models: list[Expression]) -> None:
    function = peer("slicing", name)
    near(merged(getattr(fs, name)(*models[1:3], width=width, offset=offset)), lambda a, b: function(a, b, width, offset), *inputs[1:3])


def test_its_region_is_written_into_the_users_tensors(inputs: list[Tensors], models: list[Expression]) -> None:
    theirs = {name: tensor.clone() for name, tensor in inputs[1].items()}
    before = inputs[1]["matrix"].clone()
    peer("slicing", "tensor_sum")(theirs["matrix"], inputs[2]["matrix"], 0.5, 0.0)
    merged(fs.tensor_sum(*models[1:3], width=0.5))
    assert not torch.equal(theirs["matrix"], before)
    assert torch.equal(inputs[1]["matrix"], before)


@pytest.mark.parametrize("tilt", [0.0, 0.3, 1.0, 1.4, 2.0, 2.7, 3.5])
@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.8])
def test_crossover(alpha: float, tilt: float, inputs: list[Tensors], models: list[Expression]) -> None:
    """sd-mecha's last dim is divided into the places of the half spectrum as well."""
    function = peer("crossover", "crossover")
    found = merged(fs.crossover(*models[1:3], alpha=alpha, tilt=tilt))
    near(found, lambda a, b: function(a, b, alpha, tilt), *inputs[1:3], tolerance=1e-5)


@pytest.mark.parametrize("over", ["rows"])
def test_model_stock_of_consecutive_pairs(over: str, inputs: list[Tensors], models: list[Expression]) -> None:
    """Its rows are along the last dim, which of a convolution are three numbers; here a row is a whole filter."""
    function = peer("ties", "model_stock")
    flat = [{name: t for name, t in m.items() if name != "conv"} for m in inputs]
    found = merged(fs.model_stock(*as_models(flat), over=over, pairs="consecutive"))
    for name in found:
        base, *tensors = (m[name] for m in flat)
        assert torch.allclose(found[name], base + function(*(t - base for t in tensors)), rtol=1e-3, atol=1e-4), name


def test_geometric_median(inputs: list[Tensors], models: list[Expression]) -> None:
    """In float64: in float32 its sum of distances stands still long before the median is reached."""
    function = peer("ties", "geometric_median")
    near(merged(fs.geometric_median(*models)), lambda *m: function(*(t.double() for t in m), maxiter=1000), *inputs)


def trimmed(tensor: Tensor, density: float) -> Tensor:
    magnitude = tensor.abs()
    return tensor * (magnitude >= magnitude.flatten().sort(descending=True).values[max(int(density * tensor.numel()), 1) - 1])


def test_ties_median(inputs: list[Tensors], models: list[Expression]) -> None:
    """On deltas that are trimmed before, as its own trimming keeps an element or two more."""
    function = peer("ties", "ties_sum_extended")

    def expected(base: Tensor, *tensors: Tensor) -> Tensor:
        found = [trimmed(t - base, 0.5).double() for t in tensors]
        return base + function(*found, k=1.0, vote_sgn=True, apply_median=True, maxiter=1000)

    near(merged(fs.ties_median(*models, density=0.5)), expected, *inputs)


def test_apply_stock_is_the_wrong_way_round_there(inputs: list[Tensors], models: list[Expression]) -> None:
    """`apply_stock=False`, its default, is what multiplies by Model Stock's ratio."""
    function = peer("ties", "ties_sum_extended")
    matrices = [{"matrix": m["matrix"]} for m in inputs]
    ours = merged(fs.ties_stock(*as_models(matrices), density=0.5, pairs="consecutive"))["matrix"]
    base, *tensors = (m["matrix"] for m in matrices)
    deltas = [trimmed(t - base, 0.5) for t in tensors]
    without, applied = (base + function(*deltas, k=1.0, vote_sgn=True, apply_stock=flag) for flag in (False, True))
    assert torch.allclose(ours, without, rtol=1e-4, atol=1e-5)
    assert torch.allclose(merged(fs.ties(*as_models(matrices), density=0.5))["matrix"], applied, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, applied, rtol=1e-2, atol=1e-2)


def test_its_stock_of_one_model_crashes() -> None:
    base, model = tuned(1, shapes={"x": (4, 5)})
    with pytest.raises(RuntimeError):
        peer("ties", "ties_sum_extended")(model["x"] - base["x"], k=1.0)
    assert torch.allclose(merged(fs.ties_stock(*as_models([base, model]), density=1.0))["x"], model["x"])


def test_independent_dropout_is_distributed_as_there() -> None:
    """Two models whose deltas are 1 and 2 on a base of 0: the four results, as often, to five standard errors."""
    base, one, two = ({"x": torch.full((300, 300), value)} for value in (0.0, 1.0, 2.0))
    ours = merged(fs.dropout(*as_models([base, one, two]), density=0.3, scale=0.3))["x"]
    theirs = peer("ties", "dropout")(one["x"], two["x"], probability=0.7, rescale=1.0, seed=1) * 0.3
    for value, share in ((0.0, 0.49), (1.0, 0.21), (2.0, 0.21), (1.5, 0.09)):
        for result in (ours, theirs):
            found = float(((result - value).abs() < 1e-4).double().mean())
            assert abs(found - share) < 5 * (share * (1 - share) / 90000) ** 0.5


def test_dropout_with_an_overlap_is_a_type_error_there() -> None:
    with pytest.raises(TypeError):
        peer("ties", "dropout")(torch.ones(4), torch.ones(4), probability=0.5, overlap=0.5)


def test_della_over_the_tensor_keeps_as_often() -> None:
    """Shares of what is kept, by tenths of the rank in the whole tensor, to five standard errors."""
    base, model = tuned(1, seed=22, spread=0.3, shapes={"x": (400, 500)})
    delta = model["x"] - base["x"]
    ours = merged(fs.della_linear(*as_models([base, model]), density=0.4, epsilon=0.5, over="tensor", rescale="none"))["x"] != base["x"]
    theirs = peer("ties", "find_della_dropout")(delta, number(0.6), 0.5, torch.Generator().manual_seed(3)) > 0
    order = delta.abs().flatten().argsort()
    for kept in (ours, theirs):
        tenths = kept.flatten().double()[order].reshape(10, -1).mean(1)
        wanted = 0.15 + 0.5 * (torch.arange(10) + 0.5) / 10
        assert (tenths - wanted).abs().max() < 5 * (0.25 / 20000) ** 0.5 + 0.001
