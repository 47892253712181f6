"""One example of every method that can be followed with a pencil; each line of a table is one element."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import fluxsmith as fs
from fluxsmith.errors import RecipeError
from fluxsmith.methods.arcee_fusion import arcee_fusion
from fluxsmith.methods.crossover import frequency_filter
from fluxsmith.methods.dropout import set_sizes
from fluxsmith.methods.geometric_median import median_coefficients
from fluxsmith.methods.ranks import row_ranks
from fluxsmith.methods.slicing import region
from fluxsmith.recipes.expressions import Expression
from support.in_memory import Tensors, as_models, by_hand, merged, vector

ZERO = (0.0, 0.0, 0.0, 0.0)


def near(found: Sequence[float], expected: Sequence[float], tolerance: float = 1e-6) -> bool:
    return len(found) == len(expected) and all(abs(a - b) < tolerance for a, b in zip(found, expected, strict=True))


EXAMPLES: dict[str, tuple[Callable[..., Expression], list[Sequence[float]], dict[str, Any], Sequence[float]]] = {
    # the largest of four is an outlier, the next two are kept
    "breadcrumbs": (fs.breadcrumbs, [ZERO, (4, -3, 2, 1)], {"density": 0.5, "gamma": 0.25}, (0, -3, 2, 0)),
    # kept: (-3, 2) of one, (-2, -2) of the other; their signs clash at the third element, where 2 is elected
    "breadcrumbs_ties": (
        fs.breadcrumbs_ties, [ZERO, (4, -3, 2, 1), (0, -2, -1, 9)], {"density": 0.5, "gamma": 0.25}, (0, -2.5, 2, 0),
    ),
    # energies 2 and 8, so weights 0.2 and 0.8; the minority sign is erased at the first element
    "sce": (fs.sce, [(0, 0), (1, 1), (-2, 2)], {}, (-2, 1.8)),
    # variances 2.25, 0.25: half of the two elements is the first
    "sce of the most varying half": (fs.sce, [(0, 0), (3, 1), (0, 2)], {"select_topk": 0.5}, (3, 0)),
    # deltas at 60 degrees: cos 1/2, t = 2 * 0.5 / 1.5 = 2/3 of their mean
    "model_stock": (fs.model_stock, [(0, 0), (1, 0), (0.5, math.sqrt(0.75))], {}, (0.5, math.sqrt(0.75) / 3)),
    # opposite deltas: t has no value, the base stays
    "model_stock of opposites": (fs.model_stock, [(1, 1), (2, 2), (0, 0)], {}, (1, 1)),
    # of three points on a line the median is the middle one, however far the last is
    "geometric_median": (fs.geometric_median, [(0, 0), (1, 1), (100, 100)], {}, (1, 1)),
    # of the corners of a right-angled isosceles triangle: (3 - sqrt 3)/6 along both legs
    "geometric_median of a triangle": (fs.geometric_median, [(0, 0), (1, 0), (0, 1)], {}, ((3 - math.sqrt(3)) / 6,) * 2),
    # three axes: the mean direction is the diagonal
    "karcher": (fs.karcher, [(1, 0, 0), (0, 1, 0), (0, 0, 1)], {}, (3**-0.5,) * 3),
    "karcher of norms 1, 2, 3": (fs.karcher, [(1, 0, 0), (0, 2, 0), (0, 0, 3)], {}, (2 * 3**-0.5,) * 3),
    "multislerp": (fs.multislerp, [(1, 0, 0), (0, 1, 0), (0, 0, 1)], {}, (3**-0.5,) * 3),
    # a third of the way along a quarter circle, each with its own length
    "nuslerp": (fs.nuslerp, [(1, 0), (0, 2)], {"alpha": 1 / 3}, (math.cos(math.pi / 6), 2 * math.sin(math.pi / 6))),
    "nuslerp on a line": (fs.nuslerp, [(1, 1), (3, 3)], {"alpha": 0.25}, (1.5, 1.5)),
    # da = (1, 0); of db = (2, 3) only (0, 3) is new
    "perpendicular": (fs.perpendicular, [(2, 1), (3, 4), (1, 1)], {"alpha": 0.5}, (2, 2.5)),
    "nearswap": (fs.nearswap, [ZERO, (0.1, -0.1, 3, -3)], {"t": 0.5}, (0.1, -0.1, 0.5, -0.5)),
    # the first is changed by both, the second by one, the third by too little
    "ram": (fs.ram, [(0, 0, 0), (2, 0, 0.05), (4, 6, 0)], {"epsilon": 0.1}, (3, 6, 0)),
    # model 2 shares 1 of 2 elements: ratio 1, so alone it counts 1 + 0.5 * min(1, 0.4)
    "ram_plus": (fs.ram_plus, [(0, 0, 0), (2, 0, 0.05), (4, 6, 0)], {"epsilon": 0.1, "r": 0.5, "alpha": 0.4}, (3, 7.2, 0)),
    "magmax": (fs.magmax, [(1, 1, 1), (2, 0, 3), (0, -3, 2)], {"scale": 0.5}, (1.5, -1, 2)),
    # sums (3, 0, 5): the first matters to both, the second to none, the third only to the first model
    "consensus": (fs.consensus, [(0, 0, 0), (1, 1, 5), (2, -1, 0)], {"strictness": 0.4}, (3, 0, 0)),
    "consensus of one": (fs.consensus, [(0, 0, 0), (1, 1, 5), (2, -1, 0)], {"strictness": 0.4, "agreeing": 1}, (3, 0, 5)),
    "geometric_sum": (fs.geometric_sum, [(4, -4, -4, 0), (9, -9, 9, 5)], {"alpha": 0.5}, (6, -6, 0, 0)),
    "geometric_sum of thirds": (fs.geometric_sum, [(8, -8), (1, 1)], {"alpha": 1 / 3}, (4, 4 * math.cos(2 * math.pi / 3))),
    # log a/c = log 2, log b/c = -log 2: p = 1, a b/c
    "multiply_quotient": (fs.multiply_quotient, [(4, 4), (1, 8), (2, 2)], {}, (2, 4)),
    "clamp": (fs.clamp, [(5, -5, 1, 0), (0, 0, 0, -1), (2, 2, 2, 2)], {}, (2, 0, 1, 0)),
    # bounds 0, 3, 9, mean 4: the tight limits are 3 and 9
    "clamp, stiff": (fs.clamp, [(1, 5, 20), (0, 0, 0), (3, 3, 3), (9, 9, 9)], {"stiffness": 1.0}, (3, 5, 9)),
    "cast": (fs.cast, [(1.00390625, 3.4e38)], {"dtype": "bf16"}, (1.0, torch.finfo(torch.bfloat16).max)),
    "cast to fp8": (fs.cast, [(1.1, 1000.0, -1000.0)], {"dtype": "fp8_e4m3"}, (1.125, 448, -448)),
    "tensor_sum": (fs.tensor_sum, [(1, 2, 3, 4), (5, 6, 7, 8)], {"width": 0.5, "offset": 0.25}, (1, 6, 7, 4)),
    "tensor_sum past the end": (fs.tensor_sum, [(1, 2, 3, 4), (5, 6, 7, 8)], {"width": 0.5, "offset": 0.75}, (5, 2, 3, 8)),
    # the values of a in the order of b
    "top_k_tensor_sum": (fs.top_k_tensor_sum, [(3, 1, 2), (10, 20, 30)], {}, (1, 2, 3)),
    "ema": (fs.ema, [(0,), (10,), (20,)], {"alpha": 0.5}, (12.5,)),
    "sigmoid": (fs.weighted_sum, [(0,), (1,)], {"alpha": 0.25, "curve": "sigmoid"}, (0.15625,)),
    "inverse sigmoid": (fs.weighted_sum, [(0,), (1,)], {"alpha": 0.15625, "curve": "inverse_sigmoid"}, (0.25,)),
    "passthrough": (fs.passthrough, [(1, 2)], {"scale": 1.5}, (1.5, 3)),
    # one vector: its cosine is 1/2
    "add_cosine_a": (fs.add_cosine_a, [(1, 0), (0.5, math.sqrt(0.75))], {"alpha": 0.0}, (0.75, math.sqrt(0.75) / 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str) -> None:
    method, vectors, options, expected = EXAMPLES[name]
    found = by_hand(method, *vectors, **options)
    largest = max(1.0, *map(abs, expected))
    assert near(found, expected, 2e-6 * largest), found


MASKS: dict[str, tuple[Callable[..., Expression], Sequence[float]]] = {
    # a, b, c = (0, 1, 3), (2, 1, 1), (1, 1, 1), (2, 3, 1), (0, 2, 1)
    "train_difference_mask": (fs.train_difference_mask, (1.8 / 3, 1.8, 0, 1.8 / 3, 1.8 * 2 / 3)),
    "add_opposite_mask": (fs.add_opposite_mask, (2 / 6, 1, 0, 2 / 4, 2)),
    "add_strict_opposite_mask": (fs.add_strict_opposite_mask, (0, 0, 0, 0, 2)),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks(name: str) -> None:
    """The mask itself, as what is added of a difference of one."""
    method, expected = MASKS[name]
    numbers = [(0, 2, 1, 2, 0), (1, 1, 1, 3, 2), (3, 1, 1, 1, 1), (0, 0, 0, 0, 0)]
    a, b, c, zero = as_models([vector(*row) for row in numbers])
    (one,) = as_models([vector(1, 1, 1, 1, 1)], holds="delta")
    assert near(merged(zero + fs.multiply(one, method(a, b, c)))["x"].tolist(), expected)
    assert near(merged(zero + fs.scale(one, alpha=method(a, b, c, alpha=0.5)))["x"].tolist(), [x / 2 for x in expected])
    both = fs.multiply_masks(method(a, b, c), method(a, b, c))
    assert near(merged(zero + fs.multiply(one, both))["x"].tolist(), [x * x for x in expected])


def test_cosines_of_columns() -> None:
    """Columns (1, 0) and (0, 1) against (1, 0) and (1, 0): cosines 1 and 0, over all of it 1/2."""
    a: Tensors = {"x": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}
    b: Tensors = {"x": torch.tensor([[1.0, 1.0], [0.0, 0.0]])}
    models = as_models([a, b])
    assert torch.equal(merged(fs.add_cosine_a(*models, alpha=0.0))["x"], torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    found = merged(fs.add_cosine_b(*models, alpha=0.0))["x"]  # k = 1 - 3/4 and 1 - 1/4
    assert torch.allclose(found, torch.tensor([[1.0, 0.75], [0.0, 0.25]]))


def test_ranks_of_rows() -> None:
    found = row_ranks(torch.tensor([[-3.0, 1.0, 2.0, 1.0], [0.0, -0.0, 5.0, -7.0]]))
    assert torch.equal(found * 8, torch.tensor([[7.0, 1.0, 5.0, 3.0], [1.0, 3.0, 5.0, 7.0]]))


def test_sizes_of_sets() -> None:
    """Two models: none, one of them (two such sets), both."""
    assert near(set_sizes(2, 0.4, 0.0, 0.0), (0.6, 0.2, 0.0))
    assert near(set_sizes(2, 0.4, 1.0, 0.0), (0.6, 0.0, 0.4))
    assert near(set_sizes(2, 0.3, 0.5, 0.0), (0.7, 0.1, 0.1))
    # half way, with the sets of independent draws: 0.24 : 0.16 for one model, 0.16 for both
    total = 2 * 0.4 * 0.6 + 0.4 * 0.4
    assert near(set_sizes(2, 0.4, 0.5, 1.0), (0.6, 0.4 * 0.24 / total, 0.4 * 0.16 / total))
    for overlap in (0.0, 0.1, 0.5, 0.9, 1.0):
        sizes = set_sizes(4, 0.3, overlap, 0.4)
        assert abs(sum(size * math.comb(4, k) for k, size in enumerate(sizes)) - 1) < 1e-12


@pytest.mark.parametrize(
    ("overlap", "shares"), [(0.0, (0.6, 0.2, 0.2, 0.0)), (0.5, (0.6, 0.4 / 3, 0.4 / 3, 0.4 / 3)), (1.0, (0.6, 0, 0, 0.4))]
)
def test_dropout_in_sets(overlap: float, shares: Sequence[float]) -> None:
    """Deltas of 1 and 2: results 0 (none), 1, 2 and their mean 1.5, to five standard errors."""
    inputs = [{"x": torch.full((200, 300), value)} for value in (0.0, 1.0, 2.0)]
    wish = fs.dropout(*as_models(inputs), density=0.4, draw="sets", overlap=overlap, rescale="none", scale=1.0)
    found = merged(wish)["x"]
    for value, share in zip((0.0, 1.0, 2.0, 1.5), shares, strict=True):
        assert abs(float((found == value).double().mean()) - share) <= 5 * (share * (1 - share) / 60000) ** 0.5


def test_regions_of_a_ring() -> None:
    assert region(0.5, 0.0, 10) == (0, 5, False)
    assert region(0.5, 0.8, 10) == (3, 8, True)
    assert region(-0.3, 0.5, 10) == (2, 5, False)
    assert region(2.0, 0.0, 10) == (0, 10, False)


def test_filters() -> None:
    """Eight points have half-spectrum heights 0, 1/4, 1/2, 3/4, 1."""
    assert frequency_filter((8,), 0.6, 0.0).tolist() == [0, 0, 1, 1, 1]
    assert frequency_filter((8,), 0.6, 2.0).tolist() == [1, 1, 0, 0, 0]
    assert frequency_filter((8,), 0.6, 1.0).tolist() == pytest.approx([0.6] * 5)
    assert frequency_filter((4, 8), 0.9, 0.0)[0, 0] == 0
    assert frequency_filter((4, 8), 0.9, 0.0).sum() == 19  # all but the constant


def test_low_of_one_and_high_of_the_other() -> None:
    """A constant from a and the fastest wave of b."""
    wave = [(-1.0) ** i for i in range(8)]
    found = by_hand(fs.crossover, [5.0] * 8, [1.0 + w for w in wave], alpha=0.5)
    assert near(found, [5.0 + w for w in wave], 1e-5)


def test_arcee_fusion_by_its_definition() -> None:
    generator = torch.Generator().manual_seed(8)
    base = torch.randn(9, 12, generator=generator)
    model = base + 0.3 * torch.randn(9, 12, generator=generator)
    p, q = (t.double().softmax(1) for t in (model, base))
    importance = (model - base).double().abs() * (p * (p / q).log()).sum(1, keepdim=True)
    ordered = importance.flatten().sort().values
    first, median, third = (ordered[int(share * 107)] for share in (0.25, 0.5, 0.75))
    expected = torch.where(importance >= median + 1.5 * (third - first), model, base)
    found = merged(arcee_fusion(*as_models([{"x": base}, {"x": model}])))["x"]
    assert torch.allclose(found, expected, atol=1e-6)
    assert 0 < int((found != base).sum()) < 50


def test_della_keeps_the_expectation() -> None:
    """Divided by its own probability, an element keeps its mean: of 20000 equal deltas, whatever their rank."""
    base, model = {"x": torch.zeros(100, 200)}, {"x": torch.ones(100, 200)}
    found = merged(fs.della_linear(*as_models([base, model]), density=0.5, epsilon=0.6))["x"]
    assert abs(float(found.mean()) - 1) < 5 * (1.3 / 20000) ** 0.5
    kept = found[found != 0]
    assert abs(float(kept.min()) - 1 / 0.8) < 0.01
    assert abs(float(kept.max()) - 1 / 0.2) < 0.1


def test_median_of_models_that_coincide() -> None:
    assert median_coefficients([[1.0, 1.0], [1.0, 1.0]], [0.5, 0.5], 100, 1e-14) == [0.5, 0.5]


REFUSED: dict[str, tuple[Callable[..., Expression], dict[str, Any]]] = {
    "a step below zero": (fs.nearswap, {"t": -0.1}),
    "more than all outliers": (fs.breadcrumbs, {"gamma": 1.2}),
    "a window wider than all": (fs.della, {"epsilon": 1.5}),
    "half a model": (fs.consensus, {"agreeing": 1.5}),
    "a width beyond the uniform one": (fs.ema, {"profile": "power", "sigma_rel": 0.5}),
    "a stiffness of two": (fs.clamp, {"stiffness": 2.0}),
    "an unknown way to draw": (fs.dropout, {"draw": "pairs"}),
    "no type": (fs.cast, {}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_out_of_their_range_are_refused(name: str) -> None:
    """When the recipe is built, or at the latest when it is planned."""
    method, options = REFUSED[name]
    with pytest.raises(RecipeError):
        by_hand(method, *[[1.0, 2.0]] * (1 if method is fs.cast else 2), **options)


def test_a_curve_is_for_shares() -> None:
    with pytest.raises(RecipeError, match="between 0 and 1"):
        by_hand(fs.weighted_sum, [1.0], [2.0], alpha=1.5, curve="inverse_sigmoid")
