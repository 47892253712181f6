"""The nearest matrix of low rank as two thin factors: verified against the optimum, or computed exactly.

    D ~ up @ down      up = U_k sqrt(S_k) [m, k],  down = sqrt(S_k) V_k^T [k, n]

The factors are balanced, which suits half types. Large matrices go through a block Krylov method (Musco & Musco 2015,
arXiv:1504.05477) whose random start is keyed by a name, never by a global generator. Its result is accepted where the
residual is proven to be near that of the optimum (Eckart & Young 1936); else the subspace grows, and in the end the
eigenvectors of the Gram matrix in float64 decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fluxsmith.adapters.extracting.rank import RankRule
from fluxsmith.methods.decompositions import svd
from fluxsmith.methods.masks import uniform_u32

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LowRank", "frobenius_squared", "low_rank", "low_rank_elements"]

SMALL = 384  # the shorter side up to which everything is exact
TOLERANCE = 0.01  # of the optimum's residual
_MARGIN = 8  # columns of a block beyond the rank
_PROBES, _POWERS = 8, 3
_STRIP = 1 << 22  # elements that are held in float64 at once


@dataclass(frozen=True)
class LowRank:
    """Factors `up` [m, k] and `down` [k, n], their singular values, ||D||^2 and ||D - up @ down||^2.

    `exact` says that the whole spectrum was computed.
    """

    up: Tensor
    down: Tensor
    singular: tuple[float, ...]
    energy: float
    residual: float
    exact: bool

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    @property
    def kept(self) -> float:
        """The share of the energy ||D||^2 that the factors have."""
        return 1 - self.residual / self.energy if self.energy else 1.0


def low_rank(matrix: Tensor, rule: RankRule, *, key: str = "", tolerance: float = TOLERANCE) -> LowRank:
    """The nearest matrix of the rank that a rule chooses.

    `matrix` is [m, n], float32 or float64. `key` names the random numbers of the search. The residual is within
    `tolerance` of the smallest that any matrix of this rank has.
    """
    if matrix.shape[0] > matrix.shape[1]:
        turned = low_rank(matrix.mT, rule, key=key, tolerance=tolerance)
        return LowRank(turned.down.mT, turned.up.mT, turned.singular, turned.energy, turned.residual, turned.exact)
    energy = frobenius_squared(matrix)
    short = matrix.shape[0]
    found = None
    if short > SMALL and rule.guess + _MARGIN <= short // 4:
        found = _Krylov(matrix, rule, key, energy, tolerance).search()
    exact = found is None
    basis, coordinates = _exact(matrix, rule, energy) if found is None else found
    singular = coordinates.norm(dim=1).double()
    root = singular.sqrt()
    inverse = root.clamp_min(1e-300).reciprocal() * (root > 0)
    up, down = basis * root.to(basis.dtype), coordinates * inverse.to(basis.dtype)[:, None]
    return LowRank(up, down, tuple(singular.tolist()), energy, _residual(matrix, up, down), exact)


def low_rank_elements(rows: int, columns: int, rank: int) -> float:
    """Elements (of four bytes) that `low_rank` holds at its peak beside its input."""
    short, long = sorted((rows, columns))
    if short <= SMALL:
        return 8 * short * long
    gram = 2 * 4 * short * short  # the Gram matrix, its eigenvectors and LAPACK's own, in float64
    return gram + 2 * _STRIP + 2 * rank * (rows + columns)


def frobenius_squared(matrix: Tensor) -> float:
    """The sum of squares of a matrix or vector, in float64."""
    stored = matrix if matrix.is_contiguous() or matrix.dim() < 2 else matrix.mT  # flat without a copy, either way
    return sum(float(strip.double().square().sum()) for strip in stored.reshape(-1).split(_STRIP))


def _strip_rows(matrix: Tensor) -> int:
    return max(_STRIP // max(matrix.shape[1], 1), 1)


def _residual(matrix: Tensor, up: Tensor, down: Tensor) -> float:
    rows = _strip_rows(matrix)
    strips = zip(matrix.split(rows), up.split(rows), strict=True)
    return sum(float((strip - part @ down).double().square().sum()) for strip, part in strips)


def _exact(matrix: Tensor, rule: RankRule, energy: float) -> tuple[Tensor, Tensor]:
    """U_k and U_k^T D by the whole spectrum; D has no more rows than columns."""
    import torch

    if matrix.shape[0] <= SMALL:
        u, s, _ = svd(matrix.double())
    else:
        gram = torch.zeros(len(matrix), len(matrix), dtype=torch.float64, device=matrix.device)
        for strip in matrix.split(max(_STRIP // len(matrix), 1), dim=1):
            wide = strip.double()
            gram.addmm_(wide, wide.mT)
        squares, vectors = torch.linalg.eigh(gram)
        del gram
        s, u = squares.clamp_min(0).sqrt().flip(0), vectors.flip(1)
    rank = rule.choose(s.tolist(), len(s), energy)
    assert rank is not None  # a rule answers where the spectrum is known
    basis = u[:, :rank].to(matrix.dtype)
    return basis, basis.mT @ matrix


class _Krylov:
    """A growing orthonormal basis Q of the span of A W, A A^T A W, ... with a random W; A is [m, n] with m <= n."""

    def __init__(self, matrix: Tensor, rule: RankRule, key: str, energy: float, tolerance: float) -> None:
        self._matrix, self._rule, self._key = matrix, rule, key
        self._energy, self._tolerance = energy, tolerance
        self._block = rule.guess + _MARGIN
        self._limit = matrix.shape[0] // 3
        self._basis = matrix[:, :0]
        self._image = matrix[:0]  # Q^T A

    def search(self) -> tuple[Tensor, Tensor] | None:
        """U_k and U_k^T A where they are proven to be good enough, None where the basis has grown too far."""
        block = self._matrix @ self._random(self._matrix.shape[1], self._block, "start")
        while self._basis.shape[1] + self._block <= self._limit:
            block = self._extend(block)
            found = self._attempt(block)
            if found is not None:
                return found
        return None

    def _extend(self, block: Tensor) -> Tensor:
        """Take a block into the basis; the next one, A A^T Q_last without what the basis has already."""
        import torch

        fresh = self._orthonormal(block)
        image = fresh.mT @ self._matrix
        self._basis, self._image = torch.cat([self._basis, fresh], dim=1), torch.cat([self._image, image])
        return self._outside(self._matrix @ image.mT)

    def _attempt(self, rest: Tensor) -> tuple[Tensor, Tensor] | None:
        """The Rayleigh-Ritz approximation from the basis, if it is good; `rest` is (1 - Q Q^T) A A^T Q_last."""
        import torch

        image = self._image.double()
        squares, vectors = torch.linalg.eigh(image @ image.mT)
        squares, vectors = squares.flip(0).clamp_min(0), vectors.flip(1)
        count = self._matrix.shape[0]
        rank = self._rule.choose(squares.sqrt().tolist(), count, self._energy)
        if rank is None or rank > len(squares) - _MARGIN:
            return None
        directions = vectors[:, :rank].to(self._matrix.dtype)
        basis, coordinates = self._basis @ directions, directions.mT @ self._image
        residual = _residual(self._matrix, basis, coordinates)
        epsilon = torch.finfo(self._matrix.dtype).eps
        allowed = residual - residual / (1 + self._tolerance) ** 2
        if residual <= (4 * epsilon) ** 2 * self._energy or self._excess(squares, vectors, rest, rank, allowed) <= allowed:
            return basis, coordinates
        return None

    def _excess(self, squares: Tensor, vectors: Tensor, rest: Tensor, rank: int, allowed: float) -> float:
        """A bound on how much more energy the best matrix of this rank has than the one that was found.

        In an orthonormal basis that begins with the Ritz vectors, A A^T = [[T, R^T], [R, M]] with T = diag(squares).
        For every t > 0 it is at most diag(T + R^T R / t, M + t), and M is at most mu = ||(1 - Q Q^T) A||^2. So the
        sum of its first k eigenvalues is at most sum_i max(eigenvalue_i(T + R^T R / t), mu + t).
        """
        import torch

        last = vectors[-rest.shape[1] :]  # only the last block of the basis leads out of it
        wide = rest.double()
        outside = last.mT @ (wide.mT @ wide) @ last
        size = float(outside[:rank, :rank].trace().clamp_min(0).sqrt())
        mu = self._outside_norm_squared()
        gap = float(squares[rank - 1]) - mu
        best = float("inf")
        for step in [gap * share for share in (0.9, 0.3, 0.1, 0.03)] + [size * share for share in (3.0, 1.0, 0.3, 0.1)]:
            if step <= 0 or best <= allowed:
                continue
            bound = torch.linalg.eigvalsh(torch.diag(squares) + outside / step).flip(0)[:rank]
            best = min(best, float((bound.clamp_min(mu + step) - squares[:rank]).sum()))
        return best

    def _outside_norm_squared(self) -> float:
        """||(1 - Q Q^T) A||^2 by a few power iterations on random vectors, a little more to be safe."""
        import torch

        probe = self._orthonormal(self._random(self._matrix.shape[0], _PROBES, "probe"))
        largest = 0.0
        for _ in range(_POWERS):
            image = probe.mT @ self._matrix
            largest = max(largest, float(torch.linalg.matrix_norm(image.double(), ord=2)) ** 2)
            probe = self._orthonormal(self._matrix @ image.mT)
        return 1.15 * largest

    def _outside(self, block: Tensor) -> Tensor:
        """What a block has outside of the basis; twice, as once leaves rounding errors of what was large."""
        for _ in range(2):
            block = block - self._basis @ (self._basis.mT @ block)
        return block

    def _orthonormal(self, block: Tensor) -> Tensor:
        """An orthonormal basis of what a block has outside of the basis, of as many columns.

        Columns that were nearly inside are rounding errors after the first pass; the second makes them orthogonal.
        """
        import torch

        return torch.linalg.qr(self._outside(torch.linalg.qr(self._outside(block)).Q)).Q

    def _random(self, rows: int, columns: int, use: str) -> Tensor:
        """A matrix of random signs, the same for the same key."""
        import numpy as np
        import torch

        words = np.asarray(uniform_u32(f"factorise|{self._key}|{use}".encode(), 0, rows * columns))
        signs = (words >> np.uint32(31)).astype(np.float32) * np.float32(2) - np.float32(1)
        return torch.from_numpy(signs.reshape(rows, columns)).to(self._matrix)
