"""One delta made a module: what is kept exactly, what is lost, and what kohya and LyCORIS make of the same delta."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fluxsmith.adapters.extracting.extraction import Options, extract_module
from fluxsmith.adapters.extracting.rank import RankRule
from fluxsmith.adapters.module import Span, Target
from fluxsmith.adapters.tensors import delta_of


def target(*shape: int) -> Target:
    rows = shape[0] if shape else 1
    return Target("x.weight", "transformer", "bfl", "x.weight", shape, (Span(0, 0, rows),))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SHAPES = st.one_of(
    st.tuples(st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3]), st.sampled_from([1, 3])),
)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from(["lora", "lokr", "full"]), st.sampled_from(["bfloat16", "float16", "float32"]), st.integers(0, 2**16))
def test_with_the_full_residual_a_module_means_its_delta(shape: tuple[int, ...], algorithm: str, dtype: str, seed: int) -> None:
    delta = randn(*shape, seed=seed).to(getattr(torch, dtype)).float()
    options = Options(algorithm, RankRule("energy", 0.8), full_residual=True)  # pyright: ignore[reportArgumentType]
    made = extract_module(target(*shape), delta, options)
    assert made is not None
    torch.testing.assert_close(delta_of(made[0]), delta, rtol=0, atol=1e-5 * float(delta.abs().max()))


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from(["lora", "lokr"]), st.integers(0, 2**16))
def test_what_is_lost_is_what_is_reported(shape: tuple[int, ...], algorithm: str, seed: int) -> None:
    delta = randn(*shape, seed=seed)
    made = extract_module(target(*shape), delta, Options(algorithm, RankRule("rank", 2)))  # pyright: ignore[reportArgumentType]
    assert made is not None
    module, finding = made
    lost = float((delta - delta_of(module)).double().square().sum())
    assert lost == pytest.approx(finding.residual, rel=1e-4, abs=1e-9 * finding.energy)
    stored = sum(factor.numel() for factor in module.factors.values())
    assert stored <= delta.numel()


def test_zeros_have_no_module() -> None:
    assert extract_module(target(5, 4), torch.zeros(5, 4), Options()) is None


def test_a_convolution_of_low_rank_comes_back() -> None:
    delta = torch.einsum("or,rikl->oikl", randn(16, 2), randn(2, 12, 3, 3, seed=1))
    made = extract_module(target(16, 12, 3, 3), delta, Options(rule=RankRule("rank", 2)))
    assert made is not None
    assert {role: factor.shape for role, factor in made[0].factors.items()} == {"up": (16, 2, 1, 1), "down": (2, 12, 3, 3)}
    torch.testing.assert_close(delta_of(made[0]), delta, rtol=0, atol=1e-5)


def test_a_convolutions_kernel_belongs_to_the_second_factor() -> None:
    delta = torch.einsum("ab,cdkl->acbdkl", randn(4, 4), randn(3, 2, 3, 3, seed=1)).reshape(12, 8, 3, 3)
    made = extract_module(target(12, 8, 3, 3), delta, Options("lokr", factor=4))
    assert made is not None
    assert made[0].factors["w2"].shape == (3, 2, 3, 3)
    torch.testing.assert_close(delta_of(made[0]), delta, rtol=0, atol=1e-5)


def test_the_same_delta_as_lycoris_extracts() -> None:
    """`fixed` keeps as many singular values as it is told; below half of the rows it is right (and rounded to half)."""
    from lycoris.utils import extract_linear  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    delta = randn(40, 64)
    down, up, _ = extract_linear(delta, mode="fixed", mode_param=6, device="cpu")[0]  # pyright: ignore[reportUnknownVariableType]
    made = extract_module(target(40, 64), delta, Options(rule=RankRule("rank", 6)))
    assert made is not None
    torch.testing.assert_close(delta_of(made[0]), (up @ down).float(), rtol=0, atol=1e-3)  # pyright: ignore[reportUnknownMemberType]


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99, 1.0])
def test_the_legacy_clamp_is_kohyas(quantile: float) -> None:
    """As sd-scripts' extraction: U S and V^T, both limited to a quantile of their signed values (so signs must be the same)."""
    delta = randn(30, 4) @ randn(4, 50, seed=1)
    plain = extract_module(target(30, 50), delta, Options(rule=RankRule("rank", 4)))
    made = extract_module(target(30, 50), delta, Options(rule=RankRule("rank", 4), legacy_clamp=quantile))
    assert plain is not None and made is not None
    root = torch.linalg.svdvals(delta)[:4].sqrt()
    up, down = plain[0].factors["up"] * root, plain[0].factors["down"] / root[:, None]
    limit = float(torch.quantile(torch.cat([up.flatten(), down.flatten()]), quantile))
    expected = up.clamp(-limit, limit) @ down.clamp(-limit, limit)
    torch.testing.assert_close(delta_of(made[0]), expected, rtol=0, atol=1e-4)
    assert made[1].residual == pytest.approx(float((delta - expected).square().sum()), rel=1e-3, abs=1e-6)
    assert quantile == 1 or made[1].residual > 0.001 * made[1].energy
