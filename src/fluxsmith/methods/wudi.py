"""WUDI: a merged delta that disturbs no model's own directions, found by gradient steps without any data."""

from collections.abc import Iterable

from fluxsmith.methods.base import Delta, PerInput, Weight, merge_method
from fluxsmith.methods.decompositions import merge_matrices

__all__ = ["wudi"]

_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # Adam's defaults (Kingma & Ba 2015), as in the paper


def _descend(merged: Delta, curvature: Delta, target: Delta, steps: int, rate: float) -> Delta:
    """Adam on the quadratic whose gradient is merged @ curvature - target; `merged` is changed in place."""
    import torch

    momentum, variance = torch.zeros_like(merged), torch.zeros_like(merged)
    gradient = torch.empty_like(merged)
    for step in range(1, steps + 1):
        torch.mm(merged, curvature, out=gradient).sub_(target)
        momentum.lerp_(gradient, 1 - _BETAS[0])
        variance.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        divisor = torch.sqrt(variance, out=gradient).div_((1 - _BETAS[1] ** step) ** 0.5).add_(_EPSILON)
        merged.addcdiv_(momentum, divisor, value=-rate / (1 - _BETAS[0] ** step))
    return merged


def _quadratic(deltas: Iterable[Delta]) -> tuple[Delta, Delta, Delta]:
    """The sum of the deltas, and the interference as a quadratic: curvature [columns, columns] and target."""
    import torch

    sums: tuple[Delta, Delta, Delta] | None = None
    for delta in deltas:
        if sums is None:
            sums = torch.zeros_like(delta), delta.new_zeros(delta.shape[1], delta.shape[1]), torch.zeros_like(delta)
        total, curvature, target = sums
        total.add_(delta)
        square = float(torch.linalg.vector_norm(delta)) ** 2
        if square:  # a model that changed nothing here cannot be disturbed
            own = (delta.mT @ delta).mul_(2 / square)
            target.addmm_(delta, own)
            curvature.add_(own)
            del own  # before the next one is made
    assert sums is not None
    return sums


def _merge(deltas: Iterable[Delta], steps: int, rate: float) -> Delta:
    return _descend(*_quadratic(deltas), steps, rate)


@merge_method(
    whole=True,
    workspace=lambda rows, columns, inputs: max(5 * rows * columns + columns**2, 3 * rows * columns + 2 * columns**2),
    paper="Cheng et al. 2025, Whoever Started the Interference Should End It (arXiv 2503.08099)",
)
def wudi(base: Weight, *models: Weight, weights: PerInput = (), scale: float = 1.0, steps: int = 300, rate: float = 1e-5) -> Weight:
    """base + scale * d, where d starts as the sum of the deltas and `steps` steps of Adam make the interference smaller.

    Minimised is sum_i |(d - d_i) d_i^T|^2 / |d_i|^2 with d_i = w_i (m_i - base): the rows of d_i stand for the inputs
    that model i was trained on. Adam (rate `rate`) moves an element by at most about `steps` * `rate`, so deltas of
    another size than a fine-tune's 1e-3 want another rate. Vectors: base + scale * mean(d_i).
    """
    return merge_matrices(base, models, weights, scale, lambda deltas: _merge(deltas, steps, rate))
