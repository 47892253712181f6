"""What the methods on whole matrices share: singular vectors of every shape, the nearest orthogonal matrix."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fluxsmith.methods.decompositions import orthogonal_factor, svd


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "columns"), [(12, 7), (7, 12), (9, 9), (1, 5)])
def test_svd_gives_back_the_matrix(rows: int, columns: int) -> None:
    given = matrix(rows, columns)
    u, s, vh = svd(given)
    size = min(rows, columns)
    assert u.shape == (rows, size)
    assert vh.shape == (size, columns)
    assert torch.equal(s, s.sort(descending=True).values)
    assert torch.allclose(u.mul(s) @ vh, given, atol=1e-5)


def test_svd_goes_on_in_float64_where_float32_does_not_converge(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = torch.linalg.svd
    tried: list[torch.dtype] = []

    def stubborn(given: Tensor, **options: Any) -> Any:
        tried.append(given.dtype)
        if given.dtype == torch.float32:
            raise torch.linalg.LinAlgError("no convergence")
        return real(given, **options)

    monkeypatch.setattr(torch.linalg, "svd", stubborn)
    given = matrix(6, 4)
    u, s, vh = svd(given)
    assert tried == [torch.float32, torch.float64]
    assert s.dtype == torch.float32
    assert torch.allclose(u.mul(s) @ vh, given, atol=1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(12, 7), (7, 12), (8, 8)])
def test_no_orthogonal_matrix_is_nearer(rows: int, columns: int) -> None:
    given = matrix(rows, columns)
    nearest = orthogonal_factor(given)
    short = nearest if rows <= columns else nearest.mT
    assert torch.allclose(short @ short.mT, torch.eye(min(rows, columns)), atol=1e-5)
    best = (given - nearest).norm()
    for seed in range(20):
        other = orthogonal_factor(nearest + 0.1 * matrix(rows, columns, seed + 1))
        assert (given - other).norm() > best
