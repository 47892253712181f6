"""FusionBench as an oracle for the methods on whole matrices, Fisher and RegMean: its functions on the same deltas."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fluxsmith.methods import METHODS
from fluxsmith.recipes.expressions import state_dict
from support.structural import as_models, merged

pytest.importorskip("fusion_bench", reason="fusion-bench is an oracle and is not installed (pip install fusion-bench)")

SHAPES = {"square": (24, 24), "wide": (12, 40), "tall": (40, 12), "vector": (24,)}


def tensors(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * scale for name, shape in SHAPES.items()}


BASE = tensors(0)
DELTAS = [tensors(seed, 0.01) for seed in (1, 2, 3)]
TUNED = [{name: BASE[name] + delta[name] for name in SHAPES} for delta in DELTAS]


def ours(method: str, **options: Any) -> dict[str, Tensor]:
    """The change that a method makes to the base."""
    wish = METHODS[method](*as_models(base=BASE, a=TUNED[0], b=TUNED[1], c=TUNED[2]), **options)
    return {name: tensor - BASE[name] for name, tensor in merged(wish).items()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 2e-6) -> None:
    for name in SHAPES:
        assert (found[name] - expected[name]).abs().max() < tolerance, name


def test_tsv_merge() -> None:
    from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction

    assert_close(ours("tsv_merge"), compute_and_sum_svd_mem_reduction(DELTAS, accelerator=torch.device("cpu")))


def test_iso_c_but_vectors_stay_a_mean() -> None:
    from fusion_bench.method.isotropic_merging.iso_utils import iso_c

    assert_close(ours("iso_c"), iso_c(DELTAS, accelerator="cpu"))


@pytest.mark.parametrize("common", [0.2, 0.5, 0.8])
def test_iso_cts(common: float) -> None:
    from fusion_bench.method.isotropic_merging.iso_utils import iso_cts

    assert_close(ours("iso_cts", common=common), iso_cts(DELTAS, common_space_fraction=common, accelerator="cpu"))


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_knots(density: float) -> None:
    """FusionBench has the alignment alone; the vote of signs is spelled out here."""
    from fusion_bench.method.knots.knots_utils import subspace_alignment

    found = ours("knots_ties", density=density)
    for name in ("square", "wide", "tall"):
        u, s, parts = subspace_alignment([delta[name] for delta in DELTAS], eps=1e-7)
        kept: list[Tensor] = []
        for part in parts:
            limit = part.abs().flatten().sort(descending=True).values[max(int(density * part.numel()), 1) - 1]
            kept.append(part * (part.abs() >= limit))
        sign = torch.where(torch.stack(kept).sum(0) >= 0, 1.0, -1.0)
        agree = torch.stack([part * (part * sign > 0) for part in kept])
        mean = agree.sum(0) / (agree != 0).sum(0).clamp(min=1)
        # a coordinate next to the threshold may fall on either side
        assert ((found[name] - u @ torch.diag(s) @ mean).abs() < 2e-6).float().mean() > 0.98, name


def test_wudi() -> None:
    """Its gradient comes from autograd, ours from the quadratic's matrices: rounding differs, and Adam divides by it."""
    from fusion_bench.method.wudi.wudi import wudi_merging

    theirs = {name: tensor.detach() for name, tensor in wudi_merging(DELTAS, accelerator="cpu", iter_num=100).items()}
    assert_close(ours("wudi", steps=100), theirs, 2e-5)


def statistics(seed: int) -> dict[str, Tensor]:
    """An importance for every element."""
    return {name: tensor.square() + 1e-3 for name, tensor in tensors(seed).items()}


def test_fisher() -> None:
    """FusionBench adds 1e-6 to every importance, fluxsmith 1e-12 unless told."""
    from fusion_bench.method.fisher_merging.fisher_merging import merging_with_fisher_weights

    importance = [statistics(seed) for seed in (4, 5, 6)]
    theirs = merging_with_fisher_weights(
        {name: [model[name] for model in TUNED] for name in SHAPES}, importance, torch.ones(3), normalize_fisher_weight=False
    )
    models = as_models(a=TUNED[0], b=TUNED[1], c=TUNED[2])
    params = [state_dict(values, name=f"p{i}", holds="param") for i, values in enumerate(importance)]
    assert_close(merged(METHODS["fisher"](*models, importance=params, floor=1e-6)), theirs, 1e-5)


@pytest.mark.parametrize("alpha", [0.1, 0.9, 1.0])
def test_regmean(alpha: float) -> None:
    from fusion_bench.method.regmean.regmean import merging_with_regmean_weights

    matrices = ("square", "wide", "tall")
    grams = [{name: _gram(SHAPES[name][1], 20 + i) for name in matrices} for i in range(3)]
    theirs = merging_with_regmean_weights(
        {f"{name}.weight": [model[name] for model in TUNED] for name in SHAPES}, grams, reduce_non_diagonal_ratio=alpha
    )
    models = as_models(a=TUNED[0], b=TUNED[1], c=TUNED[2])
    params = [state_dict(values, name=f"p{i}", holds="param") for i, values in enumerate(grams)]
    found = merged(METHODS["regmean"](*models, grams=params, alpha=alpha))
    assert_close(found, {name.removesuffix(".weight"): tensor for name, tensor in theirs.items()}, 2e-4)


def _gram(size: int, seed: int) -> Tensor:
    samples = torch.randn(4 * size, size, generator=torch.Generator().manual_seed(seed))
    return samples.mT @ samples / len(samples)
