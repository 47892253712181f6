"""Algorithms against plain formulas, and what they say of shapes, scales and names."""

import math

import pytest
import torch

from adapters.algorithm_deltas import TOLERANCE, delta, on_rows, rand, relative, shapes_of
from fluxsmith.adapters.algorithms import ALGORITHMS, Algorithm, find_algorithm
from fluxsmith.adapters.dialects import Draft
from fluxsmith.adapters.dialects.base import default_settings
from fluxsmith.errors import IncompatibleError

# -- what no library here does ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(10, 6), (10, 6, 3, 3), (6, 6)])
def test_dora_of_columns(shape: tuple[int, ...]) -> None:
    """OneTrainer: every input's weights have one norm."""
    weight, up, down = rand(*shape), rand(10, 2)[: shape[0]], rand(2, *shape[1:])
    magnitude = rand(1, 6, *[1] * (len(shape) - 2)).abs()
    turned = weight + 0.75 * (up @ down.flatten(1)).reshape(shape)
    expected = torch.empty_like(weight)
    for column in range(6):
        expected[:, column] = magnitude.flatten()[column] * turned[:, column] / turned[:, column].pow(2).sum().sqrt()
    factors = {"up": up, "down": down, "dora_scale": magnitude}
    algorithm = ALGORITHMS["lora"]
    assert algorithm.reads(shapes_of(factors)) == "whole"
    assert relative(delta(algorithm, factors, {"scale": 0.75}, weight), expected - weight) <= TOLERANCE


@pytest.mark.parametrize("shape", [(10,), (10, 1), (10, 1, 1, 1), (1, 10, 1, 1)])
def test_dora_of_rows_in_every_shape(shape: tuple[int, ...]) -> None:
    """ai-toolkit [out], LyCORIS [out, 1, ...], PEFT's convolutions [1, out, 1, 1]; a row of zeros stays zero."""
    weight, up, down = rand(10, 10), rand(10, 2), rand(2, 10)
    weight[3], up[3] = 0, 0
    turned = weight + up @ down
    expected = turned * rand(10).abs()[:, None] / turned.norm(dim=1, keepdim=True).clamp_min(1e-30) - weight
    role = "magnitude" if shape[0] == 1 else "dora_scale"
    factors = {"up": up, "down": down, role: rand(10).abs().reshape(shape)}
    assert ALGORITHMS["lora"].reads(shapes_of(factors)) == "rows"
    assert relative(delta(ALGORITHMS["lora"], factors, {"scale": 1.0}, weight), expected) <= TOLERANCE


def test_sparse_rest_of_an_extraction() -> None:
    """LyCORIS' extraction keeps the largest of what its product leaves, by coordinates of the weight as a matrix."""
    weight, up, down = rand(8, 5, 2, 2), rand(8, 2, 1, 1), rand(2, 5, 2, 2)
    rest = torch.where(rand(8, 20, seed=9).abs() > 1.2, rand(8, 20, seed=9), 0.0).to_sparse().coalesce()
    factors = {
        "up": up, "down": down, "sparse_indices": rest.indices().to(torch.int16), "sparse_values": rest.values(),
        "sparse_size": torch.tensor(rest.shape),
    }  # fmt: skip
    expected = 0.5 * ((up.flatten(1) @ down.flatten(1)) + rest.to_dense()).reshape(weight.shape)
    assert ALGORITHMS["lora"].shape(shapes_of(factors)) == (8, 5, 2, 2)
    assert relative(delta(ALGORITHMS["lora"], factors, {"scale": 0.5}, weight), expected) <= TOLERANCE


def test_a_replacement_is_the_value() -> None:
    weight, value = rand(16), rand(16, seed=3)
    assert torch.allclose(delta(ALGORITHMS["replace"], {"value": value}, {}, weight), (value - weight).float())
    assert ALGORITHMS["replace"].reads({"value": (16,)}) == "rows"


# -- what belongs together ---------------------------------------------------------------------------------------------------

UNFIT: list[tuple[str, dict[str, tuple[int, ...]], str]] = [
    ("lora", {"up": (8, 4), "down": (3, 6)}, "different ranks"),
    ("lora", {"up": (8, 4), "down": (4, 6), "mid": (4, 3, 3, 3)}, "different ranks"),
    ("lora", {"up": (8, 4), "down": (4, 6, 3, 3), "mid": (4, 4, 3, 3)}, "has the kernel"),
    ("lora", {"up": (8, 4), "down": (4,)}, "no matrices"),
    ("lora", {"up": (8, 4), "down": (4, 6), "sparse_indices": (2, 9), "sparse_values": (8,)}, "coordinates"),
    ("lora", {"up": (8, 4), "down": (4, 6), "dora_scale": (7, 1)}, "dora_scale [7, 1] is not one of the rows"),
    ("lora", {"up": (8, 4), "down": (4, 6), "dora_scale": (1, 8)}, "dora_scale [1, 8] is not one of the columns"),
    ("lora", {"up": (8, 4), "down": (4, 6), "magnitude": (6,)}, "magnitude [6] is not one of the rows"),
    ("lora", {"up": (8, 4), "down": (4, 6), "magnitude": (8,), "dora_scale": (8, 1)}, "two magnitudes"),
    ("loha", {"w1_a": (8, 4), "w1_b": (4, 6), "w2_a": (8, 3), "w2_b": (4, 6)}, "different ranks"),
    ("loha", {"w1_a": (8, 4), "w1_b": (4, 6), "w2_a": (8, 4), "w2_b": (4, 5)}, "w2 makes [8, 5]"),
    ("loha", {"t1": (4, 4, 3, 3), "t2": (4, 4, 3, 3), "w1_a": (8, 4), "w1_b": (4, 6), "w2_a": (4, 8), "w2_b": (4, 6)}, "different ranks"),
    ("lokr", {"w1": (2, 2), "w1_a": (2, 1), "w1_b": (1, 2), "w2": (4, 3)}, "both whole and as a product"),
    ("lokr", {"w1": (2, 2), "w2": (4, 3), "t2": (1, 1, 3, 3)}, "both whole and as a product"),
    ("lokr", {"w1": (2, 2), "w2_a": (4, 3), "w2_b": (2, 3)}, "different ranks"),
    ("lokr", {"w1": (4,), "w2": (4, 3)}, "no matrix"),
    ("oft", {"blocks": (3, 4, 5)}, "no squares"),
    ("oft", {"blocks": (3, 4, 4), "rescale": (11, 1)}, "rescale [11, 1]"),
    ("oft", {"packed": (3, 5)}, "no upper triangle"),
    ("boft", {"blocks": (2, 3, 5, 5)}, "no butterfly"),
    ("boft", {"butterfly": (1, 3, 4)}, "no squares"),
    ("boft", {"butterfly": (1, 3, 4, 4), "blocks": (1, 3, 4, 4)}, "two libraries"),
    ("ia3", {"w": (3, 4)}, "vector"),
    ("ia3", {"w": (3,), "l": (3, 1)}, "two scales"),
    ("glora", {"a1": (6, 4), "a2": (4, 5), "b1": (8, 4), "b2": (4, 6)}, "no change of one input"),
    ("glora", {"a1": (6, 4), "a2": (4, 6), "b1": (8, 4), "b2": (3, 6)}, "different ranks"),
    ("glora", {"a1": (6, 4), "a2": (4, 6), "b1": (8, 4), "b2": (4, 7)}, "different inputs"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shapes", "text"), UNFIT)
def test_factors_that_do_not_go_together(name: str, shapes: dict[str, tuple[int, ...]], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        ALGORITHMS[name].shape(shapes)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "algorithm", [a for a in ALGORITHMS.values() if len(set(a.roles.values())) > 1 and a.name not in ("oft", "ia3", "boft")]
)
def test_a_missing_factor_is_a_key_error(algorithm: Algorithm) -> None:
    """The opener says which: half a module is never applied."""
    with pytest.raises(KeyError):
        algorithm.shape({})


@pytest.mark.parametrize(
    ("name", "shapes", "settings", "weight", "suits"),
    [
        ("ia3", {"w": (8,)}, {"on_input": 0.0}, (8, 6), True),
        ("ia3", {"w": (8,)}, {"on_input": 1.0}, (8, 6), False),
        ("ia3", {"l": (1, 6)}, {}, (8, 6), True),
        ("ia3", {"l": (1, 8, 1, 1)}, {}, (8, 6, 3, 3), True),
        ("ia3", {"l": (1, 7, 1, 1)}, {}, (8, 6, 3, 3), False),
        ("ia3", {"l": (8, 1)}, {}, (8,), True),
        ("ia3", {"l": (1, 8)}, {"on_input": 1.0}, (8,), False),
        ("oft", {"packed": (1, 6)}, {}, (8, 12), True),
        ("oft", {"packed": (1, 6)}, {}, (8, 10), False),
        ("lora", {"up": (8, 4), "down": (4, 6)}, {}, (8, 6), True),
    ],
)
def test_whether_factors_suit_a_weight(
    name: str, shapes: dict[str, tuple[int, ...]], settings: dict[str, float], weight: tuple[int, ...], suits: bool
) -> None:
    assert ALGORITHMS[name].suits(shapes, settings, weight) is suits


def test_coordinates_outside_of_the_weight_are_refused() -> None:
    factors = {"up": rand(8, 2), "down": rand(2, 6), "sparse_values": rand(1)}
    for outside in ([[8], [0]], [[-1], [0]], [[0], [6]]):
        with pytest.raises(IncompatibleError, match="outside of the weight"):
            on_rows(ALGORITHMS["lora"], {**factors, "sparse_indices": torch.tensor(outside)}, {"scale": 1.0}, rand(8, 6), 0, 4)


def test_scales() -> None:
    lora, lokr, loha = ALGORITHMS["lora"], ALGORITHMS["lokr"], ALGORITHMS["loha"]
    shapes = {"up": (8, 4), "down": (4, 6)}
    assert lora.rank(shapes) == 4
    assert [lora.scale(alpha, 4, shapes) for alpha in (None, 0.0, 2.0, 16.0)] == [1.0, 1.0, 0.5, 4.0]
    for alpha in (math.inf, math.nan):
        with pytest.raises(ValueError, match="alpha"):
            lora.scale(alpha, 4, shapes)
    full = {"w1": (2, 2), "w2": (4, 3)}
    assert lokr.rank(full) is None
    assert [lokr.scale(alpha, None, full) for alpha in (math.inf, 10000.0, 9984.0, 9999999999.0, 0.0, None)] == [1.0] * 6
    with pytest.raises(ValueError, match="alpha"):
        lokr.scale(math.nan, None, full)
    assert lokr.rank({"w1": (2, 2), "w2_a": (4, 3), "w2_b": (3, 5)}) == 3
    assert lokr.rank({"w1_a": (2, 1), "w1_b": (1, 2), "w2_a": (4, 3), "w2_b": (3, 5)}) == 1
    assert loha.rank({"w1_a": (8, 4), "w1_b": (4, 6), "w2_a": (8, 4), "w2_b": (4, 6)}) == 4


def test_settings_of_a_whole_lokr_are_finite_and_a_difference_beside_a_lora_is_not_scaled() -> None:
    whole = default_settings(Draft("module", "lokr", {"w1": (2, 2), "w2": (4, 3)}, {"alpha": math.inf}))
    assert whole == {"scale": 1.0}
    lora = Draft("module", "lora", {"up": (8, 4), "down": (4, 6)}, {"alpha": 2.0})
    assert default_settings(Draft("module", "diff", {"diff": (8,)}, {}, lora))["scale"] == 1.0
    assert default_settings(Draft("module", "lora", {"up": (8,)}, {}, lora))["scale"] == 0.5


def test_algorithms_are_told_by_names_and_shapes() -> None:
    def name(bias: bool = False, **parts: tuple[int, ...]) -> str | None:
        found = find_algorithm({last.replace("__", "."): shape for last, shape in parts.items()}, bias=bias)
        return found.name if found else None

    assert name(oft_blocks=(3, 4, 4), alpha=()) == "oft"
    assert name(oft_blocks=(2, 3, 4, 4), alpha=()) == "boft"
    assert name(oft_blocks=(2, 3, 4, 4), rescale=(12, 1), alpha=()) == "boft"
    assert name(weight=(12,), on_input=()) == "ia3"
    assert name(weight=(12,)) is None
    assert name(lora_A__weight=(4, 6), hada_w1_a=(8, 4)) is None
    assert name(lora_up__weight=(8, 4), lora_down__weight=(4, 6), dora_scale=(8, 1), alpha=()) == "lora"
    assert name(lora_B__bias=(8,), bias=True) == "lora"
    assert name(lora_B__bias=(8,)) is None
    assert name(diff_b=(8,), bias=True) == "diff"


def test_every_written_name_is_read_as_its_role() -> None:
    for algorithm in ALGORITHMS.values():
        for words in algorithm.stored.values():
            assert all(algorithm.roles[last] == role for role, last in words.items()), algorithm.name
            assert len(set(words.values())) == len(words)


def test_a_row_may_be_cut_where_the_algorithm_says_so() -> None:
    """Rows of the factors of `by_rows` are a module for these rows of the weight."""
    weight = rand(12, 8)
    modules = {
        "lora": {"up": rand(12, 2), "down": rand(2, 8), "dora_scale": rand(12, 1).abs()},
        "loha": {"w1_a": rand(12, 2), "w1_b": rand(2, 8), "w2_a": rand(12, 2, seed=1), "w2_b": rand(2, 8, seed=1)},
        "diff": {"diff": rand(12, 8, seed=2)},
        "replace": {"value": rand(12, 8, seed=3)},
        "glora": {"a1": rand(8, 2), "a2": rand(2, 8), "b1": rand(12, 2), "b2": rand(2, 8, seed=4)},
        "ia3": {"w": rand(12)},
        "boft": {"butterfly": rand(1, 2, 4, 4), "scales": rand(12, 1)},
        "oft": {"packed": rand(2, 6)},
    }
    settings = {"scale": 0.5, "on_input": 0.0}
    for name, factors in modules.items():
        algorithm = ALGORITHMS[name]
        roles = algorithm.by_rows(shapes_of(factors), settings)
        if name == "oft":
            settings = {"neumann_terms": 5.0}
        assert roles is not None, name
        whole = delta(algorithm, factors, settings, weight)
        cut = {role: factor[3:7] if role in roles else factor for role, factor in factors.items()}
        assert relative(delta(algorithm, cut, settings, weight[3:7]), whole[3:7]) <= TOLERANCE, name
    lokr = ALGORITHMS["lokr"]
    assert lokr.by_rows({"w1": (3, 2), "w2": (4, 4)}, {}) is None
    assert ALGORITHMS["loha"].by_rows({"t1": (2, 2, 3, 3)}, {}) is None
