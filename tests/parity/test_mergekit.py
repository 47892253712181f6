"""mergekit as an oracle, through its in-memory interface: arithmetic in float32, output rounded to bf16."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import fluxsmith as fs
from fluxsmith.recipes.expressions import Expression
from support.tiny_flux import TinyCheckpoints, tensors_of

from .agreement import agreement, merged

methods: Any = pytest.importorskip("mergekit.merge_methods", reason="mergekit is an oracle and is not installed (pip install mergekit)")

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def weights(tiny: TinyCheckpoints) -> list[Weights]:
    return [tensors_of(path) for path in (tiny.a, tiny.b, tiny.c)]


@pytest.fixture(scope="module")
def models(tiny: TinyCheckpoints) -> list[Expression]:
    return [fs.model(str(path), name=name) for path, name in ((tiny.a, "a"), (tiny.b, "b"), (tiny.c, "c"))]


def peer(
    method: str, inputs: Sequence[Weights], *, base: int | None = None, out_dtype: torch.dtype = torch.bfloat16, **parameters: Any
) -> Weights:
    """A merge by mergekit."""
    return methods.merge_state_dicts(list(inputs), method, parameters=parameters, base=base, dtype=torch.float32, out_dtype=out_dtype)


def saved(weights: Mapping[str, Tensor], path: Path) -> Expression:
    """Weights as a checkpoint of ours."""
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    return fs.model(str(path), name=path.stem)


def test_linear_half_and_half_is_equal_bit_by_bit(weights: list[Weights], models: list[Expression], tmp_path: Path) -> None:
    found = merged(fs.linear(*models[:2]), tmp_path)
    assert agreement(found, peer("linear", weights[:2], weight=[0.5, 0.5])).share == 1


@pytest.mark.parametrize("shares", [(0.3, 0.7), (1.0, 2.0), (1.5, -0.5)])
def test_linear(weights: list[Weights], models: list[Expression], tmp_path: Path, shares: tuple[float, float]) -> None:
    """mergekit divides by the sum of the weights at the end, fluxsmith before: float32 may differ in the last bit.

    That bit decides where a result lies just between two bf16 numbers: of a third, in a few cases of a thousand.
    """
    found = agreement(merged(fs.linear(*models[:2], weights=list(shares)), tmp_path), peer("linear", weights[:2], weight=list(shares)))
    assert found.share > 0.995
    assert found.far == 0


def test_linear_without_normalising(weights: list[Weights], models: list[Expression], tmp_path: Path) -> None:
    shares = [0.4, 0.3, 0.2]
    found = merged(fs.linear(*models, weights=shares, normalize=False), tmp_path)
    assert agreement(found, peer("linear", weights, weight=shares, normalize=False)).share == 1


def test_slerp_of_equal_norms(weights: list[Weights], models: list[Expression], tmp_path: Path) -> None:
    """Equal norms: the elements of `a` in another order."""
    turned = {name: tensor.flatten().flip(0).reshape(tensor.shape) for name, tensor in weights[0].items()}
    other = saved(turned, tmp_path / "turned.safetensors")
    found = agreement(merged(fs.slerp(models[0], other, alpha=0.3), tmp_path), peer("slerp", [weights[0], turned], base=0, t=0.3))
    assert found.share > 0.999
    assert found.far == 0


def test_slerp_of_different_norms_is_another_definition(weights: list[Weights], models: list[Expression], tmp_path: Path) -> None:
    """fluxsmith interpolates norms linearly; mergekit's factors are applied to tensors that were not normalised."""
    longer = {name: tensor * 4 for name, tensor in weights[1].items()}
    other = saved(longer, tmp_path / "longer.safetensors")
    ours = merged(fs.slerp(models[0], other, alpha=0.3), tmp_path, dtype="fp32")
    theirs = peer("slerp", [weights[0], longer], base=0, t=0.3, out_dtype=torch.float32)
    for name, tensor in ours.items():
        if tensor.numel() < 1000:
            continue
        expected = 0.7 * weights[0][name].float().norm() + 0.3 * longer[name].float().norm()
        assert torch.isclose(tensor.norm(), expected, rtol=1e-4)
        assert not torch.isclose(theirs[name].norm(), expected, rtol=0.02)


def test_task_arithmetic(weights: list[Weights], models: list[Expression], tmp_path: Path) -> None:
    """fluxsmith adds with fused multiply-adds, mergekit with a product and a sum."""
    ours = merged(fs.task_arithmetic(*models, weights=[0.4, 0.7], scale=0.9), tmp_path)
    found = agreement(ours, peer("task_arithmetic", weights, base=0, weight={1: 0.4, 2: 0.7}, **{"lambda": 0.9}))
    assert found.share > 0.995
    assert found.far == 0


def test_its_arithmetic_is_bf16_unless_told_otherwise(weights: list[Weights], models: list[Expression], tmp_path: Path) -> None:
    """fluxsmith computes in float32 and rounds once; mergekit rounds every step of most methods to the inputs' type."""
    ours = merged(fs.task_arithmetic(*models, weights=[0.4, 0.7]), tmp_path)
    theirs = methods.merge_state_dicts(list(weights), "task_arithmetic", parameters={"weight": {1: 0.4, 2: 0.7}}, base=0)
    assert agreement(ours, peer("task_arithmetic", weights, base=0, weight={1: 0.4, 2: 0.7})).share > 0.995
    assert agreement(ours, theirs).share < 0.8


@pytest.fixture(scope="module")
def precise(tmp_path_factory: pytest.TempPathFactory, weights: list[Weights]) -> tuple[list[Weights], list[Expression]]:
    """The checkpoints in float32 with a little noise, so that hardly two deltas are of one magnitude."""
    generator = torch.Generator().manual_seed(5)
    folder = tmp_path_factory.mktemp("precise")
    noisy = [
        {name: tensor.float() + 1e-4 * torch.randn(tensor.shape, generator=generator) for name, tensor in model.items()}
        for model in weights
    ]
    return noisy, [saved(model, folder / f"{name}.safetensors") for name, model in zip("abc", noisy, strict=True)]


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties(precise: tuple[list[Weights], list[Expression]], tmp_path: Path, density: float) -> None:
    noisy, models = precise
    found = merged(fs.ties(*models, density=density), tmp_path)
    assert agreement(found, peer("ties", noisy, base=0, weight=1.0, density=density)).share == 1


def test_ties_with_weights(precise: tuple[list[Weights], list[Expression]], tmp_path: Path) -> None:
    noisy, models = precise
    ours = merged(fs.ties(*models, density=0.4, weights=[0.7, 0.3], scale=0.8), tmp_path)
    found = agreement(ours, peer("ties", noisy, base=0, weight={1: 0.7, 2: 0.3}, density=0.4, **{"lambda": 0.8}))
    assert found.share > 0.999
    assert found.far == 0


def test_ties_keep_all_that_tie_where_mergekit_keeps_some(weights: list[Weights], models: list[Expression], tmp_path: Path) -> None:
    """In bf16 many deltas have the magnitude of the k-th largest: fluxsmith keeps them all, mergekit as many as fill k."""
    found = merged(fs.ties(*models, density=0.5), tmp_path)
    expected = peer("ties", weights, base=0, weight=1.0, density=0.5)
    assert 0.99 < agreement(found, expected).share < 1
    for name in found:
        tied = torch.zeros(found[name].shape, dtype=torch.bool)
        for model in weights[1:]:
            magnitude = (model[name].float() - weights[0][name].float()).abs()
            kept = max(int(0.5 * magnitude.numel()), 1)
            tied |= magnitude == magnitude.flatten().sort(descending=True).values[kept - 1]
        assert not ((found[name] != expected[name]) & ~tied).any(), name


def test_dare_drops_as_many(weights: list[Weights], models: list[Expression], tmp_path: Path) -> None:
    """Random masks differ; the share of what is kept must not. 314,000 elements: five standard errors are 0.0045."""
    density = 0.3
    ours = merged(fs.dare_linear(*models[:2], density=density), tmp_path, dtype="fp32")
    theirs = peer("dare_linear", weights[:2], base=0, weight=1.0, density=density, out_dtype=torch.float32)
    for result in (ours, theirs):
        changed = torch.cat([(result[name] != weights[0][name].float()).flatten() for name in result])
        different = torch.cat([(weights[1][name] != weights[0][name]).flatten() for name in result])
        assert abs(float(changed.double().mean() / different.double().mean()) - density) < 0.0045


def test_dare_rescales_by_density_and_mergekit_by_what_is_left(weights: list[Weights], models: list[Expression], tmp_path: Path) -> None:
    """fluxsmith divides what is kept by the density (the paper); mergekit restores the sum of magnitudes per tensor."""
    density = 0.3
    ours = merged(fs.dare_linear(*models[:2], density=density), tmp_path, dtype="fp32")
    theirs = peer("dare_linear", weights[:2], base=0, weight=1.0, density=density, rescale=True, out_dtype=torch.float32)
    for name in (name for name in ours if ours[name].numel() > 5000):
        base = weights[0][name].float()
        delta = weights[1][name].float() - base
        kept = (ours[name] - base).abs() > 1e-6
        assert torch.allclose((ours[name] - base)[kept], delta[kept] / density, rtol=1e-3, atol=1e-5)
        assert torch.isclose((theirs[name] - base).abs().sum(), delta.abs().sum(), rtol=1e-3)
