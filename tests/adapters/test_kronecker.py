"""The nearest Kronecker product: exact where there is one, as good as the decomposition of the rearranged matrix elsewhere."""

import pytest
import torch

from fluxsmith.adapters.extracting.kronecker import factors_of, nearest_kronecker
from fluxsmith.errors import UsageError


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("factor", [None, 4])
def test_a_kronecker_product_comes_back(factor: int | None) -> None:
    matrix = torch.kron(randn(4, 4), randn(12, 9, seed=1))
    found = nearest_kronecker(matrix, factor=factor)
    assert (found.w1.shape, found.w2.shape) == ((4, 4), (12, 9))
    assert float((torch.kron(found.w1, found.w2) - matrix).norm() / matrix.norm()) < 5e-7
    assert found.kept == pytest.approx(1, abs=1e-12)


def test_a_product_of_sides_divided_apart_comes_back() -> None:
    """LyCORIS and PEFT divide out and in by numbers of their own: a [256, 64] weight is [16, 8] x [16, 8]."""
    matrix = torch.kron(randn(16, 8), randn(16, 8, seed=1))
    assert nearest_kronecker(matrix).kept == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("factor,m1,n1", [(4, 4, 4), (5, 4, 5), (1, 1, 1)])
def test_the_residual_is_that_of_the_rearranged_matrix(factor: int, m1: int, n1: int) -> None:
    matrix = randn(24, 40)
    blocks = torch.stack([matrix[i * (24 // m1) : (i + 1) * (24 // m1), j * (40 // n1) : (j + 1) * (40 // n1)].flatten()
                          for i in range(m1) for j in range(n1)])  # fmt: skip
    singular = torch.linalg.svdvals(blocks.double())
    found = nearest_kronecker(matrix, factor=factor)
    assert found.w1.shape == (m1, n1)
    assert found.residual == pytest.approx(float(singular[1:].square().sum()), rel=1e-5, abs=1e-9)
    assert float((matrix - torch.kron(found.w1, found.w2)).double().square().sum()) == pytest.approx(found.residual, rel=1e-5, abs=1e-9)


def test_factors_are_common_divisors() -> None:
    assert factors_of(24, 36) == [2, 3, 4]
    assert factors_of(7, 5) == []


def test_sides_without_a_common_divisor_still_have_a_product() -> None:
    matrix = randn(7, 5)
    found = nearest_kronecker(matrix)
    torch.testing.assert_close(torch.kron(found.w1, found.w2), matrix)


def test_a_factor_below_one_is_refused() -> None:
    with pytest.raises(UsageError):
        nearest_kronecker(randn(4, 4), factor=0)
