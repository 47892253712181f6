"""What holds for whole families of methods: results do not depend on tiles, inputs stay as they are, the order of the
models does not matter, and models that are all alike are merged into themselves."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import fluxsmith as fs
from fluxsmith.engine.in_memory import load_state_dict
from fluxsmith.recipes.expressions import Expression
from fluxsmith.recipes.recipe import Recipe
from support.in_memory import SHAPES, Tensors, as_models, merged, small_tiles, tuned

Build = Callable[..., Expression]


def on_base(method: Build, **options: Any) -> Build:
    """A method of a base and models, written as a function of the models alone."""
    return lambda base, *models: method(base, *models, **options)


def without_base(method: Build, **options: Any) -> Build:
    return lambda base, *models: method(*models, **options)


def first_two(method: Build, **options: Any) -> Build:
    return lambda base, x, y, *_: method(x, y, **options)


def three(method: Build, **options: Any) -> Build:
    return lambda base, x, y, *_: method(x, y, base, **options)


def as_mask(method: Build) -> Build:
    return lambda base, x, y, *_: fs.add_difference(x, y, base, alpha=method(x, y, base))


CALLS: dict[str, Build] = {
    "della": on_base(fs.della),
    "della, tensor, l1": on_base(fs.della, over="tensor", rescale="l1"),
    "della_linear": on_base(fs.della_linear, density=0.3, rescale="none"),
    "dare_linear, l1": on_base(fs.dare_linear, rescale="l1"),
    "breadcrumbs": on_base(fs.breadcrumbs, density=0.6, gamma=0.1),
    "breadcrumbs_ties": on_base(fs.breadcrumbs_ties, density=0.6, gamma=0.1),
    "sce": on_base(fs.sce, select_topk=0.4),
    "karcher": without_base(fs.karcher),
    "multislerp": without_base(fs.multislerp),
    "nuslerp": first_two(fs.nuslerp),
    "nuslerp, rows": first_two(fs.nuslerp, over="rows"),
    "nuslerp, columns": first_two(fs.nuslerp, over="columns"),
    "geometric_median": without_base(fs.geometric_median),
    "ties_median": on_base(fs.ties_median),
    "model_stock": on_base(fs.model_stock),
    "model_stock, rows": on_base(fs.model_stock, over="rows"),
    "ties_stock": on_base(fs.ties_stock),
    "ties_stock, tensor": on_base(fs.ties_stock, over="tensor"),
    "perpendicular": three(fs.perpendicular),
    "train_difference_mask": as_mask(fs.train_difference_mask),
    "add_opposite_mask": as_mask(fs.add_opposite_mask),
    "add_strict_opposite_mask": as_mask(fs.add_strict_opposite_mask),
    "geometric_sum": first_two(fs.geometric_sum, alpha=0.3),
    "multiply_quotient": three(fs.multiply_quotient),
    "add_cosine_a": first_two(fs.add_cosine_a, alpha=0.5),
    "add_cosine_b": first_two(fs.add_cosine_b, alpha=0.5),
    "clamp": on_base(fs.clamp, stiffness=0.5),
    "cast": lambda base, x, *_: fs.cast(x, dtype="bf16"),
    "tensor_sum": first_two(fs.tensor_sum),
    "top_k_tensor_sum": first_two(fs.top_k_tensor_sum, width=0.5),
    "crossover": first_two(fs.crossover, tilt=0.3),
    "nearswap": lambda base, x, *_: fs.nearswap(base, x, t=0.01),
    "arcee_fusion": lambda base, x, *_: fs.arcee_fusion(base, x),
    "ram": on_base(fs.ram, epsilon=0.01),
    "ram_plus": on_base(fs.ram_plus, epsilon=0.01),
    "magmax": on_base(fs.magmax),
    "consensus": on_base(fs.consensus),
    "pcb": on_base(fs.pcb, density=0.3),
    "dropout": on_base(fs.dropout, density=0.4),
    "dropout, sets": on_base(fs.dropout, density=0.4, draw="sets", overlap=0.3),
    "ema": without_base(fs.ema),
    "multiply": lambda base, x, y, *_: base + fs.multiply(x - base, fs.add_opposite_mask(x, y, base)),
    "weighted_sum of a mask": lambda base, x, y, *_: fs.weighted_sum(x, y, alpha=fs.add_opposite_mask(x, y, base)),
}

#: Whose numbers are sums over tiles, which are rounded in another order where the tiles are others.
SUMMED = {"dare_linear, l1", "della, tensor, l1", "sce", "karcher", "multislerp", "nuslerp", "nuslerp, columns", "geometric_median",
          "ties_median", "model_stock", "ties_stock, tensor", "perpendicular", "add_cosine_a", "add_cosine_b"}  # fmt: skip

#: Whose elements are in or out by a comparison, which another rounding may turn.
THRESHOLDS = {
    "breadcrumbs", "breadcrumbs_ties", "sce", "ties_median", "ties_stock", "ties_stock, tensor", "arcee_fusion", "ram", "ram_plus",
    "consensus", "pcb", "magmax", "della", "della, tensor, l1", "della_linear", "top_k_tensor_sum", "multiply_quotient", "geometric_sum",
}  # fmt: skip


def far(found: Tensors, expected: Tensors) -> float:
    return max(float((found[name] - expected[name]).abs().max()) for name in expected)


@pytest.mark.parametrize("name", CALLS)
def test_tiles_do_not_matter_and_inputs_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tuned(3, seed=1)
    before = [{key: tensor.clone() for key, tensor in tensors.items()} for tensors in inputs]
    wish = CALLS[name](*as_models(inputs))
    whole = merged(wish)
    assert all(whole[key].shape == before[0][key].shape and whole[key].isfinite().all() for key in before[0])
    small_tiles(monkeypatch)
    tiled = merged(wish)
    if name in SUMMED:
        assert far(tiled, whole) < 3e-6
    else:
        assert all(torch.equal(tiled[key], whole[key]) for key in whole)
    for now, then in zip(inputs, before, strict=True):
        assert all(torch.equal(now[key], then[key]) for key in then)


UNORDERED = ["breadcrumbs", "breadcrumbs_ties", "sce", "karcher", "multislerp", "geometric_median", "ties_median", "model_stock",
             "model_stock, rows", "ties_stock", "ram", "ram_plus", "magmax", "consensus", "pcb", "nuslerp"]  # fmt: skip


@pytest.mark.parametrize("name", UNORDERED)
def test_the_order_of_the_models_does_not_matter(name: str) -> None:
    base, x, y, z = tuned(3, seed=2)
    turned = [base, y, x, z] if name == "nuslerp" else [base, z, x, y]
    assert far(merged(CALLS[name](*as_models([base, x, y, z]))), merged(CALLS[name](*as_models(turned)))) < 3e-6


KEEPS_ONE = ["karcher", "multislerp", "nuslerp", "nuslerp, rows", "nuslerp, columns", "geometric_median", "model_stock",
             "model_stock, rows", "geometric_sum", "add_cosine_a", "add_cosine_b", "tensor_sum", "top_k_tensor_sum",
             "crossover", "magmax", "ram", "ema"]  # fmt: skip


@pytest.mark.parametrize("name", KEEPS_ONE)
def test_models_that_are_all_alike_are_merged_into_themselves(name: str) -> None:
    base, x = tuned(1, seed=3)
    found = merged(CALLS[name](*as_models([base, x, x, x])))
    tolerance = 0.011 if name == "ram" else 5e-6  # ram leaves out what was changed by less than epsilon
    assert far(found, x) < tolerance


LIMITS: dict[str, tuple[Build, Build]] = {
    "della_linear keeps all": (on_base(fs.della_linear, density=1.0), on_base(fs.task_arithmetic)),
    "della of density 1": (on_base(fs.della, density=1.0), on_base(fs.ties, density=1.0)),
    "breadcrumbs of all": (on_base(fs.breadcrumbs, density=1.0, gamma=0.0), on_base(fs.task_arithmetic)),
    "breadcrumbs without outliers": (on_base(fs.breadcrumbs_ties, density=0.4, gamma=0.0), on_base(fs.ties, density=0.4)),
    "sce of one model": (lambda base, x, *_: fs.sce(base, x), lambda base, x, *_: x),
    "consensus of all": (on_base(fs.consensus, agreeing=0), on_base(fs.task_arithmetic)),
    "nearswap of any step": (lambda base, x, *_: fs.nearswap(base, x, t=10.0), lambda base, x, *_: x),
    "ram of any change": (on_base(fs.ram, epsilon=0.0), without_base(fs.linear)),
    "dropout of nothing": (on_base(fs.dropout, density=1.0, scale=1.0), without_base(fs.linear)),
    "dropout of nothing, in sets": (on_base(fs.dropout, density=1.0, scale=1.0, draw="sets"), without_base(fs.linear)),
    "crossover tilted to a weighted sum": (first_two(fs.crossover, alpha=0.3, tilt=1.0), first_two(fs.weighted_sum, alpha=0.3)),
    "geometric sum at its end": (first_two(fs.geometric_sum, alpha=0.0), lambda base, x, *_: x),
    "two in karcher": (first_two(fs.karcher, weights=[0.7, 0.3]), first_two(fs.slerp, alpha=0.3)),
    "two in multislerp": (first_two(fs.multislerp), first_two(fs.slerp)),
    "ema of the newest": (without_base(fs.ema, alpha=1.0), lambda base, x, y, z: z),
    "ema of all alike": (without_base(fs.ema, profile="power", sigma_rel=12**-0.5), without_base(fs.linear)),
    "a literal as alpha": (first_two(fs.weighted_sum, alpha=fs.literal(0.3)), first_two(fs.weighted_sum, alpha=0.3)),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name: str) -> None:
    method, limit = LIMITS[name]
    # Far apart, as slerp goes straight where it is near a line; of a scalar TIES keeps one element, breadcrumbs none.
    models = as_models(tuned(3, seed=4, spread=0.5, shapes={key: shape for key, shape in SHAPES.items() if shape}))
    assert far(merged(method(*models)), merged(limit(*models))) < 1e-5


SCALED = ["karcher", "multislerp", "nuslerp", "nuslerp, rows", "geometric_median", "add_cosine_a", "crossover", "ema"]


@pytest.mark.parametrize("name", SCALED)
def test_twice_the_inputs_give_twice_the_result(name: str) -> None:
    inputs = tuned(3, seed=5)
    doubled = [{key: 2 * tensor for key, tensor in tensors.items()} for tensors in inputs]
    found = merged(CALLS[name](*as_models(doubled)))
    assert far(found, {key: 2 * tensor for key, tensor in merged(CALLS[name](*as_models(inputs))).items()}) < 1e-5


def test_what_an_option_does_without_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """`over: rows` reads its inputs once, and looks at them for NaN then; `over: tensor` reads them twice."""
    from fluxsmith.engine.tiles import Files
    from fluxsmith.errors import IncompatibleError

    read: list[int] = []
    reading = Files.read
    monkeypatch.setattr(Files, "read", lambda files, *a: (read.append(a[2] - a[1]), reading(files, *a)))
    models = tuned(2, shapes={"x": (6, 5)})
    for over, passes in (("tensor", 2), ("rows", 1)):
        read.clear()
        merged(fs.model_stock(*as_models(models), over=over))
        assert sum(read) == passes * 3 * 30
        broken = [*models[:2], {"x": models[2]["x"].clone().index_fill_(0, torch.tensor([1]), math.nan)}]
        with pytest.raises(IncompatibleError, match="not finite"):
            merged(fs.model_stock(*as_models(broken), over=over))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_sums_over_tiles_do_not_depend_on_threads(order: Sequence[int]) -> None:
    from fluxsmith.methods.statistics import column_sums

    found = column_sums(lambda a: [a.sum(0)]).begin(12, {})
    tiles = [torch.full((1, 4), math.pi**i) for i in range(3)]
    for i in order:
        found.visit(i, [tiles[i]])
    assert not found.finish_pass()
    assert torch.equal(found.value()[0], torch.stack([t[0].double() for t in tiles]).sum(0))


@pytest.mark.parametrize("name", CALLS)
def test_arithmetic_in_bf16_is_near(name: str) -> None:
    """`compute: bf16` rounds every step; the result is that of float32 to a few bits, in the type of the inputs."""
    inputs = [{key: tensor.bfloat16() for key, tensor in tensors.items()} for tensors in tuned(3, seed=6, spread=0.5)]
    wish = CALLS[name](*as_models(inputs))
    found = load_state_dict(Recipe(wish, structural=True, compute="bf16"))[0]
    assert all(found[key].dtype == torch.bfloat16 and found[key].isfinite().all() for key in inputs[0])
    if name not in THRESHOLDS:
        assert far({key: t.float() for key, t in found.items()}, {key: t.float() for key, t in merged(wish).items()}) < 0.2
