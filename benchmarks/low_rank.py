"""Extraction: the time of one large matrix, and its residual as a ratio to the optimum of Eckart and Young.

    python -m benchmarks.low_rank [SIDE] [RANK]

prints a line of JSON for every spectrum: its name, seconds, residual / optimum.
"""

import json
import math
import sys
import time

import torch

from fluxsmith.adapters.extracting.factorise import low_rank
from fluxsmith.adapters.extracting.rank import RankRule

__all__ = ["measure"]


def _spectra(side: int, rank: int) -> dict[str, torch.Tensor]:
    """Singular values, largest first, that are easy, hard, and like those of fine-tunes."""
    place = torch.arange(1, side + 1, dtype=torch.float64)
    return {
        "exactly of that rank, and noise": torch.where(place <= rank, 1.0, 1e-3).double(),
        "1/i": 1 / place,
        "1/sqrt(i)": place**-0.5,
        "0.99^i": 0.99**place,
        "all equal": torch.ones(side, dtype=torch.float64),
        "twice the rank equal": torch.where(place <= 2 * rank, 1.0, 0.5 / place),
    }


def _rotation(side: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(side, side, generator=generator)).Q


def measure(side: int = 3072, rank: int = 32) -> list[tuple[str, float, float]]:
    """(spectrum, seconds, residual / optimum) of a square matrix."""
    u, v = _rotation(side, 0), _rotation(side, 1)
    rows: list[tuple[str, float, float]] = []
    for name, spectrum in _spectra(side, rank).items():
        matrix = (u * spectrum.float()) @ v.T
        begin = time.perf_counter()
        found = low_rank(matrix, RankRule("rank", rank), key=name)
        seconds = time.perf_counter() - begin
        rows.append((name, seconds, math.sqrt(found.residual / float(spectrum[rank:].square().sum()))))
    return rows


if __name__ == "__main__":
    for row in measure(*map(int, sys.argv[1:3])):
        print(json.dumps(row), flush=True)
