"""TSV-Merge, Iso-C, Iso-CTS, WUDI, subspace boosting, rotation and truncation: their formulas, limits and symmetries."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fluxsmith.methods import METHODS
from fluxsmith.methods.rotate import nearest_rotation, rotation_power
from fluxsmith.methods.truncation import kronecker_shapes
from fluxsmith.recipes.expressions import Expression
from support.structural import as_models, merged

SHAPES = {"square": (10, 10), "wide": (6, 14), "tall": (14, 6), "conv": (6, 4, 3, 3), "vector": (9,)}


def tensors(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * scale for name, shape in SHAPES.items()}


BASE = tensors(0)
TUNED = [{name: BASE[name] + delta for name, delta in tensors(seed, 0.1).items()} for seed in (1, 2, 3)]


def deltas(name: str) -> list[Tensor]:
    """The changes of one tensor as float64 matrices (or vectors)."""
    found = [(tuned[name].double() - BASE[name].double()) for tuned in TUNED]
    return [delta.reshape(delta.shape[0], -1) if delta.dim() > 1 else delta for delta in found]


def models() -> list[Expression]:
    return list(as_models(base=BASE, a=TUNED[0], b=TUNED[1], c=TUNED[2]))


def close(found: Tensor, expected: Tensor, atol: float = 3e-5) -> bool:
    return torch.allclose(found.double(), expected.double(), atol=atol)


def polar(matrix: Tensor) -> Tensor:
    """The orthogonal factor by Newton's iteration on the Gram matrix, another way than the code's."""
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    values, vectors = torch.linalg.eigh(short @ short.mT)
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.mT @ short
    return root if short is matrix else root.mT


def test_tsv_merge_is_the_papers_formula() -> None:
    out = merged(METHODS["tsv_merge"](*models(), scale=0.7))
    for name in ("square", "wide", "tall", "conv"):
        parts = [torch.linalg.svd(delta, full_matrices=False) for delta in deltas(name)]
        kept = len(parts[0].S) // 3
        u = torch.cat([part.U[:, :kept] for part in parts], dim=1)
        s = torch.cat([part.S[:kept] for part in parts])
        vh = torch.cat([part.Vh[:kept] for part in parts])
        expected = BASE[name].double() + 0.7 * (polar(u) @ torch.diag(s) @ polar(vh)).reshape(SHAPES[name])
        assert close(out[name], expected), name
    assert close(out["vector"], BASE["vector"] + 0.7 * torch.stack(deltas("vector")).mean(0))


def test_iso_c_makes_all_singular_values_their_mean() -> None:
    out = merged(METHODS["iso_c"](*models(), weights=[1.0, 0.5, 2.0]))
    for name in ("square", "wide", "tall", "conv"):
        one, two, three = deltas(name)
        total = one + 0.5 * two + 2 * three
        mean = torch.linalg.svdvals(total).mean()
        found = (out[name].double() - BASE[name].double()).reshape(total.shape)
        assert torch.allclose(torch.linalg.svdvals(found), mean.expand(min(total.shape)), atol=1e-4), name
        assert close(found, mean * polar(total), 1e-4), name


@pytest.mark.parametrize("name", ["square", "wide", "tall", "conv"])
def test_iso_cts_joins_common_and_own_directions(name: str) -> None:
    common = 0.4
    out = merged(METHODS["iso_cts"](*models(), common=common))[name]
    parts = deltas(name)
    size = min(parts[0].shape)
    own = round((size - int(size * common)) / 3)
    first = size - 3 * own
    whole = torch.linalg.svd(parts[0] + parts[1] + parts[2], full_matrices=False)
    u, s, vh = [whole.U[:, :first]], [whole.S[:first]], [whole.Vh[:first]]
    for part in parts:
        rest = torch.linalg.svd(part - u[0] @ u[0].mT @ part, full_matrices=False)
        u.append(rest.U[:, :own])
        s.append(rest.S[:own])
        vh.append(rest.Vh[:own])
    expected = torch.cat(s).mean() * polar(torch.cat(u, dim=1)) @ polar(torch.cat(vh))
    assert close(out, BASE[name] + expected.reshape(SHAPES[name]), 1e-4)


def test_iso_cts_without_own_directions_is_iso_c() -> None:
    one, other = merged(METHODS["iso_cts"](*models(), common=1.0)), merged(METHODS["iso_c"](*models()))
    assert all(close(one[name], other[name]) for name in SHAPES)


@pytest.mark.parametrize("method", ["tsv_merge", "iso_c", "iso_cts", "wudi", "knots_ties"])
def test_the_order_of_the_models_does_not_matter(method: str) -> None:
    base, a, b, c = models()
    one, other = merged(METHODS[method](base, a, b, c)), merged(METHODS[method](base, c, a, b))
    for name in SHAPES:
        # one in a thousand may hang on the sign of a gradient that is zero but for rounding
        assert ((one[name] - other[name]).abs() < 2e-4).float().mean() > 0.999, name


def interference(merged_delta: Tensor, parts: list[Tensor]) -> float:
    return float(sum((((merged_delta - part) @ part.mT).norm() / part.norm()) ** 2 for part in parts))


def test_wudi_makes_the_interference_smaller() -> None:
    few, many = (merged(METHODS["wudi"](*models(), steps=steps, rate=1e-3)) for steps in (20, 400))
    for name in ("square", "wide", "tall", "conv"):
        parts = deltas(name)
        start, middle, end = (
            interference(delta, parts)
            for delta in (
                torch.stack(parts).sum(0),
                (few[name] - BASE[name]).double().reshape(parts[0].shape),
                (many[name] - BASE[name]).double().reshape(parts[0].shape),
            )
        )
        assert end < middle < start, name


def test_wudi_is_adam_on_its_loss() -> None:
    """The same steps by autograd and torch's own optimiser."""
    out = merged(METHODS["wudi"](*models(), steps=30, rate=1e-3))
    for name in ("square", "wide", "conv"):
        parts = [part.double() for part in deltas(name)]
        delta = torch.nn.Parameter(torch.stack(parts).sum(0))
        optimiser = torch.optim.Adam([delta], lr=1e-3)
        for _ in range(30):
            optimiser.zero_grad()
            loss = torch.stack([((delta - part) @ part.mT).square().sum() / part.square().sum() for part in parts]).sum()
            loss.backward()
            optimiser.step()
        assert close(out[name], BASE[name] + delta.detach().reshape(SHAPES[name]), 2e-4), name


def test_a_model_that_changed_nothing_has_no_say_in_wudi() -> None:
    base, a, b, same = as_models(base=BASE, a=TUNED[0], b=TUNED[1], same=dict(BASE))
    one, other = merged(METHODS["wudi"](base, a, b, same)), merged(METHODS["wudi"](base, a, b))
    assert all(close(one[name], other[name], 1e-6) for name in SHAPES if name != "vector")


def test_boost_lifts_weak_singular_values_only() -> None:
    base, a, *_ = models()
    delta = a - base
    part = deltas("square")[0]
    u, s, vh = torch.linalg.svd(part)
    share = float(s[:3].sum() / s.sum()) - 1e-4  # reached by the third
    out = merged(base + METHODS["subspace_boost"](delta, share=share))
    assert close(out["square"], BASE["square"] + u @ torch.diag(s.clamp(min=float(s[2]))) @ vh)
    assert close(out["vector"], TUNED[0]["vector"], 1e-6)
    unchanged = merged(base + METHODS["subspace_boost"](delta, share=1.0))
    assert all(close(unchanged[name], TUNED[0][name]) for name in SHAPES)
    flat = merged(base + METHODS["subspace_boost"](delta, share=0.0))
    assert torch.allclose(torch.linalg.svdvals((flat["square"] - BASE["square"]).double()), s[0].expand(10), atol=1e-4)


@pytest.mark.parametrize("name", ["square", "wide", "tall", "conv"])
def test_truncation_leaves_the_small_singular_values_out(name: str) -> None:
    base, a, *_ = models()
    part = deltas(name)[0]
    s = torch.linalg.svdvals(part)
    for algorithm in ("exact", "sketch"):
        out = merged(base + METHODS["truncate_rank"](a - base, rank=3, algorithm=algorithm))[name]
        found = (out - BASE[name]).double().reshape(part.shape)
        error = float((found - part).norm())
        best = float(s[3:].norm())
        # a sketch of 3 + 8 directions spans these small matrices whole or nearly so
        assert error < best * 1.01 + 1e-4, algorithm
        assert float(torch.linalg.svdvals(found)[3:].max()) < 1e-4


def test_a_sketch_depends_on_the_seed_alone() -> None:
    large = {"w": torch.randn(60, 50, generator=torch.Generator().manual_seed(5))}
    zero, model = as_models(zero={"w": torch.zeros(60, 50)}, model=large)
    wish = zero + METHODS["truncate_rank"](model - zero, rank=4, algorithm="sketch", passes=0)
    one, again, other = merged(wish), merged(wish, threads=3), merged(wish, seed=1)
    assert torch.equal(one["w"], again["w"])
    assert not torch.equal(one["w"], other["w"])


def test_a_kronecker_product_is_found_again() -> None:
    m1, m2, n1, n2 = kronecker_shapes(24, 20, 0.5)
    generator = torch.Generator().manual_seed(3)
    product = torch.kron(torch.randn(m1, n1, generator=generator), torch.randn(m2, n2, generator=generator))
    zero, model = as_models(zero={"w": torch.zeros(24, 20)}, model={"w": product})
    assert close(merged(zero + METHODS["truncate_kronecker"](model - zero))["w"], product, 1e-4)


def test_more_kronecker_terms_are_nearer() -> None:
    base, a, *_ = models()
    errors: list[float] = []
    for terms in (1, 2, 4, 100):
        out = merged(base + METHODS["truncate_kronecker"](a - base, terms=terms))["square"]
        errors.append(float((out - TUNED[0]["square"]).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.floats(0, 1))
def test_kronecker_factors_have_whole_shapes(rows: int, columns: int, ratio: float) -> None:
    m1, m2, n1, n2 = kronecker_shapes(rows, columns, ratio)
    assert (m1 * m2, n1 * n2) == (rows, columns)
    if ratio in (0.0, 1.0):
        assert (m1, n1) == ((1, 1) if ratio == 0 else (rows, columns))


def rotation(size: int, seed: int, angle: float = 1.0) -> Tensor:
    """A random proper rotation in float64."""
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * angle
    return torch.linalg.matrix_exp((matrix - matrix.mT) / size)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(0, 999), st.floats(-2, 2))
def test_a_power_of_a_rotation_is_that_of_its_logarithm(size: int, seed: int, power: float) -> None:
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    skew = (matrix - matrix.mT) / (2 * size)
    assert close(rotation_power(torch.linalg.matrix_exp(skew), power), torch.linalg.matrix_exp(skew * power), 1e-8)


def test_powers_add_up() -> None:
    q = rotation(8, 1)
    half = rotation_power(q, 0.5)
    assert close(half @ half, q, 1e-9)
    assert close(rotation_power(q, 0.3) @ rotation_power(q, 0.7), q, 1e-9)
    assert close(rotation_power(torch.eye(5), 0.3), torch.eye(5), 1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(12, 6), (6, 6), (4, 9), (3, 12)])
def test_a_rotated_matrix_is_turned_back(rows: int, columns: int) -> None:
    a = torch.randn(rows, columns, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    b = a @ rotation(columns, 8, 2.0)
    q = nearest_rotation(a, b)
    assert close(q @ q.mT, torch.eye(columns), 1e-9)
    assert float(torch.linalg.det(q)) == pytest.approx(1.0)
    assert close(a @ q, b, 1e-8)


@pytest.mark.parametrize("name", ["square", "wide", "tall", "conv"])
def test_rotate_goes_from_one_model_to_the_other(name: str) -> None:
    _, a, b, _ = models()
    one, other = TUNED[0][name], TUNED[1][name]
    assert close(merged(METHODS["rotate"](a, b, alignment=0.0))[name], one)
    assert close(merged(METHODS["rotate"](a, b, alignment=1.0, alpha=1.0))[name], other)
    near = merged(METHODS["rotate"](a, b))[name]
    assert (near - other).norm() < (one - other).norm()
    half = merged(METHODS["rotate"](a, b, alignment=0.5, centering=0.0))[name]
    assert half.norm() == pytest.approx(float(one.norm()), rel=1e-5)  # a rotation keeps lengths


def test_identical_models_stay_as_they_are() -> None:
    same = as_models(base=BASE, a=dict(BASE), b=dict(BASE))
    for method in ("tsv_merge", "iso_c", "iso_cts", "wudi", "knots_ties"):
        out = merged(METHODS[method](*same))
        assert all(torch.equal(out[name], BASE[name]) for name in SHAPES), method
    out = merged(METHODS["rotate"](*same[:2]))
    assert all(close(out[name], BASE[name]) for name in SHAPES)


def test_knots_of_one_model_is_the_model() -> None:
    base, a, *_ = models()
    out = merged(METHODS["knots_ties"](base, a, density=1.0))
    assert all(close(out[name], TUNED[0][name]) for name in SHAPES)
    twice = merged(METHODS["knots_ties"](*as_models(base=BASE, a=TUNED[0], b=dict(TUNED[0])), density=1.0))
    assert all(close(twice[name], TUNED[0][name]) for name in SHAPES)
