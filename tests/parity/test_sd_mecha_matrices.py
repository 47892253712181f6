"""sd-mecha's matrix methods as an oracle: its functions on single tensors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fluxsmith.methods import METHODS
from fluxsmith.methods.truncation import kronecker_shapes
from support.structural import as_models, merged

pytest.importorskip("sd_mecha", reason="sd-mecha is an oracle and is not installed (pip install sd-mecha)")


def pair(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 100 + columns)
    a = torch.randn(rows, columns, generator=generator)
    return a, a + 0.3 * torch.randn(rows, columns, generator=generator)


def function_of(method: Any) -> Callable[..., Tensor]:
    """The plain function behind a merge method of sd-mecha."""
    return method.__wrapped__


def rotated(a: Tensor, b: Tensor, **options: float) -> Tensor:
    from sd_mecha.extensions.builtin.merge_methods.svd import rotate

    options = {"alignment": 1.0, "centralization": 1.0, **options}
    alpha = torch.tensor(options.pop("alpha", 0.0))
    return function_of(rotate)({"w": a}, {"w": b}, alpha=alpha, key="w", **options)


def ours(a: Tensor, b: Tensor, **options: float) -> Tensor:
    return merged(METHODS["rotate"](*as_models(a={"w": a}, b={"w": b}), **options))["w"]


@pytest.mark.parametrize("options", [{}, {"centering": 0.0}, {"alpha": 0.4}])
def test_rotation_of_tall_matrices(options: dict[str, float]) -> None:
    a, b = pair(30, 9)
    theirs = {("centralization" if name == "centering" else name): value for name, value in options.items()}
    assert torch.allclose(ours(a, b, **options), rotated(a, b, **theirs), atol=2e-5)


def test_part_of_a_rotation() -> None:
    """sd-mecha takes powers through complex eigenvectors; ours need none, and keep lengths as well."""
    a, b = pair(30, 9)
    for alignment in (0.3, 0.5):
        theirs = rotated(a, b, alignment=alignment, centralization=0.0)
        assert torch.allclose(ours(a, b, alignment=alignment, centering=0.0), theirs, atol=1e-3)


def test_its_rotation_of_wide_matrices_is_none() -> None:
    """With fewer rows than columns sd-mecha's map changes lengths and does not reach a rotated copy; ours does both."""
    a, _ = pair(4, 10)
    skew = torch.randn(10, 10, generator=torch.Generator().manual_seed(1)) * 0.3
    b = a @ torch.linalg.matrix_exp(skew - skew.mT)
    theirs, mine = rotated(a, b, centralization=0.0), ours(a, b, centering=0.0)
    assert torch.allclose(mine, b, atol=1e-5)
    assert abs(float(theirs.norm() / b.norm()) - 1) > 0.01


def test_truncation_to_a_rank() -> None:
    from sd_mecha.extensions.builtin.merge_methods.svd import truncate_rank

    delta, _ = pair(20, 30)
    zero, model = as_models(zero={"w": torch.zeros(20, 30)}, model={"w": delta})
    theirs = function_of(truncate_rank)(delta, rank=5, use_approximate_basis=False)
    assert torch.allclose(merged(zero + METHODS["truncate_rank"](model - zero, rank=5))["w"], theirs, atol=1e-5)


def test_truncation_to_a_kronecker_product() -> None:
    from sd_mecha.extensions.builtin.merge_methods.kronecker import kron_dims_from_ratio, truncate_kronecker

    delta, _ = pair(24, 36)
    zero, model = as_models(zero={"w": torch.zeros(24, 36)}, model={"w": delta})
    assert kronecker_shapes(24, 36, 0.5) == kron_dims_from_ratio(torch.Size((24, 36)), 0.5)
    theirs = function_of(truncate_kronecker)(delta, use_approximate_basis=False)
    found = merged(zero + METHODS["truncate_kronecker"](model - zero))["w"]
    assert torch.allclose(found, theirs, atol=1e-5)


def test_its_balanced_attention_is_exchanged_attention() -> None:
    """balance_attention means to give q and k one size and gives each the other's: its S is the square of what balances.

    With A = q q^T and B = k k^T, q' = S q and k' = S^-1 k are balanced where S^2 A S^2 = B; sd-mecha's has S A S = B.
    fluxsmith has no such method: FLUX.1 normalises q and k, so their sizes say nothing.
    """
    from sd_mecha.extensions.builtin.merge_methods.balance_attention.algorithms import balance_head_energy

    generator = torch.Generator().manual_seed(1)
    q = torch.randn(6, 40, generator=generator, dtype=torch.float64)
    k = 5 * torch.randn(6, 40, generator=generator, dtype=torch.float64)
    new_q, new_k = balance_head_energy(q, k)
    assert torch.allclose(new_q.mT @ new_k, q.mT @ k, atol=1e-4)
    assert torch.allclose(new_q @ new_q.mT, k @ k.mT, rtol=1e-3, atol=0.05)
    assert torch.allclose(new_k @ new_k.mT, q @ q.mT, rtol=1e-3, atol=0.05)
