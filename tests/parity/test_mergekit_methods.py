"""mergekit's methods as oracles, one by one, on state dicts in memory; where it is wrong, the difference is asserted."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import fluxsmith as fs
from fluxsmith.recipes.expressions import Expression
from support.in_memory import Tensors, as_models, merged, tuned

methods: Any = pytest.importorskip("mergekit.merge_methods", reason="mergekit is an oracle and is not installed (pip install mergekit)")

SHAPES = {"matrix": (37, 24), "wide": (3, 700), "vector": (53,), "square": (64, 64)}


def theirs(method: str, inputs: Sequence[Tensors], *, base: int | None = None, double: bool = False, **parameters: Any) -> Tensors:
    """A merge by mergekit in float32, or float64."""
    kind = torch.float64 if double else torch.float32
    return methods.merge_state_dicts(list(inputs), method, parameters=parameters, base=base, dtype=kind, out_dtype=kind)


def near(found: Tensors, expected: Tensors, tolerance: float = 2e-6) -> None:
    for name in expected:
        assert (found[name].double() - expected[name].double()).abs().max() < tolerance, name


@pytest.fixture(scope="module")
def inputs() -> list[Tensors]:
    return tuned(3, seed=11, spread=0.3, shapes=SHAPES)


@pytest.fixture
def models(inputs: list[Tensors]) -> list[Expression]:
    return list(as_models(inputs))


@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.1), (0.9, 0.01), (0.3, 0.0)])
def test_breadcrumbs(inputs: list[Tensors], models: list[Expression], density: float, gamma: float) -> None:
    shared: dict[str, Any] = {"density": density, "gamma": gamma, "weight": {1: 0.4, 2: 0.7, 3: 0.2}}
    weights = [0.4, 0.7, 0.2]
    found = merged(fs.breadcrumbs(*models, density=density, gamma=gamma, weights=weights))
    near(found, theirs("breadcrumbs", inputs, base=0, **shared, normalize=False))
    found = merged(fs.breadcrumbs_ties(*models, density=density, gamma=gamma, weights=weights, scale=0.8))
    shared["lambda"] = 0.8
    near(found, theirs("breadcrumbs_ties", inputs, base=0, **shared, normalize=True))


def test_breadcrumbs_leave_outliers_out_where_mergekit_takes_them_back(inputs: list[Tensors], models: list[Expression]) -> None:
    """With density + gamma above one mergekit fills up to the density with outliers; here outliers are always left out."""
    found = merged(fs.breadcrumbs(*models[:2], density=0.95, gamma=0.2))
    expected = theirs("breadcrumbs", inputs[:2], base=0, weight=1.0, density=0.95, gamma=0.2, normalize=False)
    magnitude = (inputs[1]["square"] - inputs[0]["square"]).abs() / 0.3
    large = (magnitude > 1.4) & (magnitude < 1.6)  # between the 84th and the 89th percentile
    assert torch.equal(found["square"][large], inputs[0]["square"][large])
    assert (expected["square"] != inputs[0]["square"])[large].all()


@pytest.mark.parametrize("select_topk", [1.0, 0.4, 0.1])
def test_sce(inputs: list[Tensors], models: list[Expression], select_topk: float) -> None:
    near(merged(fs.sce(*models, select_topk=select_topk)), theirs("sce", inputs, base=0, select_topk=select_topk))


@pytest.mark.parametrize("over", ["tensor", "rows"])
def test_model_stock(inputs: list[Tensors], over: str) -> None:
    """Models with something in common: mergekit's clamp of products of norms does not bite."""
    common = {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3)) for name, tensor in inputs[0].items()
    }
    together = [inputs[0], *({name: model[name] + common[name] - inputs[0][name] for name in model} for model in inputs[1:])]
    found = merged(fs.model_stock(*as_models(together), over=over))
    near(found, theirs("model_stock", together, base=0, filter_wise=over == "rows"))


def test_model_stock_of_tiny_deltas_is_lost_there() -> None:
    """mergekit divides by at least 1e-6: of deltas of length 1e-4 the angle is gone and the base stays."""
    base = {"x": torch.zeros(100)}
    one = {"x": torch.full((100,), 1e-5)}
    found = merged(fs.model_stock(*as_models([base, one, one])))["x"]
    assert torch.allclose(found, one["x"], rtol=1e-6)
    assert theirs("model_stock", [base, one, one], base=0)["x"].abs().max() < 1e-6


@pytest.mark.parametrize(("over", "options"), [
    ("tensor", {}), ("rows", {"nuslerp_flatten": False}), ("columns", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
])  # fmt: skip
def test_nuslerp(inputs: list[Tensors], models: list[Expression], over: str, options: dict[str, bool]) -> None:
    """Its `row_wise` is along dim 0: what is `columns` here."""
    base, a, b, _ = models
    matrices = [{name: t for name, t in m.items() if t.dim() > 1} for m in inputs] if over == "columns" else inputs
    if over == "columns":
        base, a, b, _ = as_models(matrices)
    expected = theirs("nuslerp", matrices[1:3], double=True, weight={0: 0.7, 1: 0.3}, **options)
    near(merged(fs.nuslerp(a, b, alpha=0.3, over=over)), expected)
    expected = theirs("nuslerp", matrices[:3], base=0, double=True, weight={1: 0.7, 2: 0.3}, **options)
    near(merged(base + fs.nuslerp(a - base, b - base, alpha=0.3, over=over)), expected)


def test_multislerp(inputs: list[Tensors], models: list[Expression]) -> None:
    base, *tuned_models = models
    near(merged(fs.multislerp(*tuned_models, weights=[1, 2, 3])), theirs("multislerp", inputs[1:], weight={0: 1.0, 1: 2.0, 2: 3.0}))
    found = merged(base + fs.multislerp(*(m - base for m in tuned_models), weights=[1, 2, 3]))
    near(found, theirs("multislerp", inputs, base=0, weight={1: 1.0, 2: 2.0, 3: 3.0}))


def test_karcher(inputs: list[Tensors], models: list[Expression]) -> None:
    near(merged(fs.karcher(*models)), theirs("karcher", inputs, double=True, max_iter=100, tol=1e-12))


def test_nearswap(inputs: list[Tensors], models: list[Expression]) -> None:
    near(merged(fs.nearswap(*models[:2], t=0.05)), theirs("nearswap", inputs[:2], base=0, t=0.05))


def test_arcee_fusion_in_double_precision(inputs: list[Tensors], models: list[Expression]) -> None:
    near(merged(fs.arcee_fusion(*models[:2])), theirs("arcee_fusion", inputs[:2], base=0, double=True))


def test_arcee_fusion_of_near_models_is_noise_in_mergekits_float32() -> None:
    """The divergence of rows is far below the rounding of the sum that float32 makes of it; fluxsmith takes float64."""
    close = tuned(1, seed=4, spread=1e-4, shapes={"x": (40, 500)})
    exact = theirs("arcee_fusion", close, base=0, double=True)["x"]
    mask = exact != close[0]["x"].double()
    ours = merged(fs.arcee_fusion(*as_models(close)))["x"] != close[0]["x"]
    float32 = theirs("arcee_fusion", close, base=0)["x"] != close[0]["x"]
    assert (ours == mask).double().mean() > 0.999
    assert (float32 == mask).double().mean() < 0.99


def test_ram(inputs: list[Tensors], models: list[Expression]) -> None:
    near(merged(fs.ram(*models, epsilon=0.3)), theirs("ram", inputs, base=0, epsilon=0.3))
    near(merged(fs.ram_plus(*models, epsilon=0.3, r=0.5, alpha=0.9)), theirs("ramplus_tl", inputs, base=0, epsilon=0.3, r=0.5, alpha=0.9))


def test_della_keeps_what_it_keeps_as_often() -> None:
    """Shares of what is kept, by tenths of the rank in a row; mergekit's epsilon is half of ours. Five standard errors."""
    base, model = tuned(1, seed=12, spread=0.3, shapes={"x": (500, 400)})
    ours = merged(fs.della_linear(*as_models([base, model]), density=0.4, epsilon=0.5, rescale="none"))["x"]
    peer = theirs("della_linear", [base, model], base=0, weight=1.0, density=0.4, epsilon=0.25, rescale=False)["x"]
    order = (model["x"] - base["x"]).abs().argsort(1)
    for result in (ours, peer):
        kept = (result != base["x"]).double().gather(1, order)
        tenths = kept.reshape(500, 10, 40).mean((0, 2))
        wanted = 0.15 + 0.5 * (torch.arange(10) + 0.5) / 10
        assert (tenths - wanted).abs().max() < 5 * (0.25 / 20000) ** 0.5


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_l1_restores_the_sum_of_magnitudes_as_mergekit_does(name: str) -> None:
    base, model = tuned(1, seed=13, shapes={"x": (50, 400)})
    method = fs.dare_linear if name == "dare_linear" else fs.della_linear
    found = merged(method(*as_models([base, model]), density=0.4, rescale="l1"))["x"]
    peer = theirs(name, [base, model], base=0, weight=1.0, density=0.4, rescale=True)["x"]
    whole = (model["x"] - base["x"]).abs().sum()
    for result in (found, peer):
        assert torch.isclose((result - base["x"]).abs().sum(), whole, rtol=1e-4)


def test_it_refuses_a_window_that_leaves_the_unit_interval_and_ours_narrows_it() -> None:
    base, model = tuned(1, seed=14, shapes={"x": (200, 400)})
    with pytest.raises(ValueError, match="Epsilon"):
        theirs("della_linear", [base, model], base=0, weight=1.0, density=0.95, epsilon=0.15)
    found = merged(fs.della_linear(*as_models([base, model]), density=0.95, epsilon=0.3))["x"]
    assert abs(float((found != base["x"]).double().mean()) - 0.95) < 0.004
