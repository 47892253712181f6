"""The nearest matrix of low rank: against torch's decomposition in float64, on spectra that are hard to find."""

import math

import pytest
import torch
from torch import Tensor

from fluxsmith.adapters.extracting import factorise
from fluxsmith.adapters.extracting.factorise import low_rank
from fluxsmith.adapters.extracting.rank import RankRule

SIDE = 512  # above factorise.SMALL, so that the search is used
PLACES = torch.arange(1, SIDE + 1, dtype=torch.float64)
HARD = {
    "flat": torch.ones(SIDE, dtype=torch.float64),
    "slow": PLACES**-0.5,
    "power": 1 / PLACES,
    "fast": 0.8**PLACES,
    "linear": 1 - (PLACES - 1) / SIDE,
    "step": torch.where(PLACES <= 15, 1.0, 0.999),
    "40 equal": torch.where(PLACES <= 40, 1.0, 1e-2).double(),
    "100 equal": torch.where(PLACES <= 100, 1.0, 1e-2).double(),
    "16 and noise": torch.where(PLACES <= 16, 1.0, 1e-3).double(),
    "10 and a slow tail": torch.where(PLACES <= 10, 1.0, 1e-3 * PLACES**-0.25),
}


def with_spectrum(singular: Tensor, rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    count = len(singular)
    u = torch.linalg.qr(torch.randn(rows, count, generator=generator, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(columns, count, generator=generator, dtype=torch.float64)).Q
    return ((u * singular) @ v.T).float()


@pytest.mark.parametrize("name", HARD)
def test_the_residual_is_within_one_percent_of_the_optimum(name: str) -> None:
    matrix = with_spectrum(HARD[name], SIDE, 640)
    exact = torch.linalg.svdvals(matrix.double())
    found = low_rank(matrix, RankRule("rank", 16), key=name)
    left = float((matrix.double() - found.up.double() @ found.down.double()).norm())
    best = float(exact[16:].square().sum().sqrt())
    assert left <= 1.01 * best
    assert math.sqrt(found.residual) == pytest.approx(left, rel=1e-3)
    assert found.energy == pytest.approx(float(exact.square().sum()), rel=1e-6)


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (400, 500), (500, 400)])
def test_eckart_young_where_the_whole_spectrum_is_computed(shape: tuple[int, int]) -> None:
    """The residual of the exact path is sqrt(sum of s_i^2 beyond the rank)."""
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    found = low_rank(matrix, RankRule("energy", 0.9))
    spectrum = torch.linalg.svdvals(matrix.double())
    assert found.exact
    assert found.residual == pytest.approx(float(spectrum[found.rank :].square().sum()), rel=1e-6)
    torch.testing.assert_close(torch.tensor(found.singular), spectrum[: found.rank].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows,columns", [(600, 512), (512, 600), (30, 50)])
def test_an_exactly_low_rank_matrix_comes_back(rows: int, columns: int) -> None:
    matrix = with_spectrum(torch.linspace(2, 1, 5, dtype=torch.float64), rows, columns)
    found = low_rank(matrix, RankRule("rank", 8))
    torch.testing.assert_close(found.up @ found.down, matrix, rtol=0, atol=1e-6)
    assert math.sqrt(found.residual / found.energy) < 1e-6


def test_factors_are_balanced() -> None:
    found = low_rank(with_spectrum(HARD["fast"], SIDE, SIDE), RankRule("rank", 4))
    root = torch.tensor(found.singular).sqrt().float()
    torch.testing.assert_close(found.up.norm(dim=0), root, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.down.norm(dim=1), root, rtol=1e-4, atol=1e-6)


def test_the_energy_rule_grows_until_it_is_met_and_no_further() -> None:
    spectrum = 0.97**PLACES
    shares = (spectrum.square().cumsum(0) / spectrum.square().sum()).sqrt()
    wanted = int((shares >= 0.95).nonzero()[0]) + 1
    found = low_rank(with_spectrum(spectrum, SIDE, SIDE), RankRule("energy", 0.95))
    assert found.rank == wanted
    assert not found.exact


def test_the_same_bytes_whatever_the_global_generator_is() -> None:
    matrix = with_spectrum(HARD["slow"], SIDE, SIDE)
    torch.manual_seed(1)
    one = low_rank(matrix, RankRule("rank", 8), key="a")
    torch.manual_seed(2)
    two = low_rank(matrix, RankRule("rank", 8), key="a")
    assert torch.equal(one.up, two.up)
    assert not torch.equal(one.up, low_rank(matrix, RankRule("rank", 8), key="b").up)


def test_a_bad_guess_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof sees a subspace that misses what is large: a start that is blind to the first direction."""
    matrix = with_spectrum(torch.cat([torch.tensor([10.0]).double(), 0.9 ** PLACES[1:]]), SIDE, SIDE)
    u, _, v = torch.linalg.svd(matrix)
    random = factorise._Krylov._random  # pyright: ignore[reportPrivateUsage]

    def blind(self: object, rows: int, columns: int, use: str) -> Tensor:
        signs = random(self, rows, columns, use)  # pyright: ignore[reportArgumentType]
        return signs - torch.outer(v[0], v[0] @ signs) if use == "start" else signs

    monkeypatch.setattr(factorise._Krylov, "_random", blind)  # pyright: ignore[reportPrivateUsage]
    found = low_rank(matrix, RankRule("rank", 4))
    best = float(torch.linalg.svdvals(matrix.double())[4:].square().sum())
    assert found.residual <= 1.01**2 * best
    assert float(u[:, 0] @ found.up[:, 0]) != 0


def test_a_matrix_of_zeros_has_factors_of_zeros() -> None:
    found = low_rank(torch.zeros(20, 30), RankRule("rank", 4))
    assert found.energy == found.residual == 0
    assert float(found.up.abs().sum() + found.down.abs().sum()) == 0
