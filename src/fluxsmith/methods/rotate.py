"""Rotation of one model's rows towards another's: orthogonal Procrustes, in full or in part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxsmith.methods.base import Share, Weight, merge_method
from fluxsmith.methods.decompositions import as_matrix

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["nearest_rotation", "rotate", "rotation_power"]


def nearest_rotation(a: Tensor, b: Tensor) -> Tensor:
    """The proper rotation Q [n, n] that brings the rows of a [m, n] nearest to those of b: min |a Q - b|.

    With U S V^T = a^T b, Q = U V^T (Schoenemann 1966) where a^T b decides it; directions that it leaves open are turned
    as little as possible. Where the best Q is a reflection, the direction that matters least is flipped.
    """
    import torch

    u, s, vh = torch.linalg.svd(a.mT @ b)
    known = int((s > s[0] * len(s) * torch.finfo(s.dtype).eps).sum())
    rest, target = u[:, known:], vh[known:]
    if known < len(s):
        x, _, yh = torch.linalg.svd(rest.mT @ target.mT)
        rest, target = rest @ x, yh @ target
    u, vh = torch.cat([u[:, :known], rest], dim=1), torch.cat([vh[:known], target])
    q = u @ vh
    if float(torch.linalg.slogdet(q).sign) < 0:
        q -= 2 * torch.outer(u[:, -1], vh[-1])
    return q


def rotation_power(q: Tensor, power: float) -> Tensor:
    """Q^power: every plane that the rotation turns by an angle is turned by `power` times this angle.

    With c the cosines of the angles: the symmetric part (Q + Q^T) / 2 has eigenvalues c, and commutes with the skew
    part K = (Q - Q^T) / 2, which is sin(angle) times the quarter turn of each plane. So Q^t = f(C) + g(C) K with
    f = cos(t angle), g = sin(t angle) / sin(angle): one symmetric eigenproblem, no complex numbers.
    """
    import torch

    cosine, planes = torch.linalg.eigh((q + q.mT).mul_(0.5))
    angle = cosine.double().clamp(-1, 1).arccos()
    sine = angle.sin()
    still = sine < 1e-6  # no turn, or a half turn, which has no sense
    ratio = torch.where(still, torch.where(angle < 1, power, 0.0), (power * angle).sin() / sine.masked_fill(still, 1.0))
    skew = (q - q.mT).mul_(0.5)
    turned = (planes * ratio.to(q.dtype)) @ (planes.mT @ skew)
    return turned.addmm_(planes * (power * angle).cos().to(q.dtype), planes.mT)


def _in_span(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both matrices in coordinates of the span of their rows, and its basis [columns, span]; None: as they are."""
    import torch

    if 2 * a.shape[0] >= a.shape[1]:
        return a, b, None
    basis = torch.linalg.qr(torch.cat([a, b]).mT).Q
    return a @ basis, b @ basis, basis


def _memory(rows: int, columns: int, inputs: int) -> float:
    span = min(columns, 2 * rows)
    return 3 * rows * columns + 6.2 * span * span + (span * columns if span < columns else 0)


@merge_method(whole=True, workspace=_memory, paper="Schönemann 1966, A generalized solution of the orthogonal Procrustes problem")
def rotate(a: Weight, b: Weight, *, alignment: Share = 1.0, alpha: float = 0.0, centering: Share = 1.0) -> Weight:
    """Model `a`, its rows turned by Q^`alignment`, where the rotation Q brings them nearest to those of `b`.

    Rows are taken from their mean (times `centering`), and the mean goes from a's to b's with `alignment`. `alpha`
    blends in what a rotation cannot reach: a is replaced by (1 - alpha) a + alpha b Q^T before it is turned. So
    alignment = alpha = 0 gives a, and alignment = alpha = 1 gives b. Vectors: a + alpha (b - a).
    """
    import torch

    if a.dim() < 2:
        return a.lerp(b, alpha)
    x, y = as_matrix(a), as_matrix(b)
    mean_a, mean_b = x.mean(0).mul_(centering), y.mean(0).mul_(centering)
    x, y, basis = _in_span(x - mean_a, y - mean_b)
    q = nearest_rotation(x, y)
    if alpha:
        x = torch.lerp(x, y @ q.mT, alpha)
    del y
    x = x @ (q if alignment == 1 else rotation_power(q, alignment))
    if basis is not None:
        x = x @ basis.mT
    return x.add_(torch.lerp(mean_a, mean_b, alignment)).reshape(a.shape)
