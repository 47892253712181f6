"""LiNeS: what fine-tunes learned counts more from block to block, as a ramp of a method's `scale`.

Wang et al. 2024, LiNeS: Post-training layer scaling prevents forgetting and enhances model merging (arXiv 2410.17146).
"""

from typing import Any

from fluxsmith.errors import UsageError
from fluxsmith.methods.base import Method
from fluxsmith.methods.task_arithmetic import task_arithmetic
from fluxsmith.recipes.expressions import Expression
from fluxsmith.recipes.schedules import Ramp

__all__ = ["lines"]


def lines(
    base: Expression | str, *models: Expression | str, alpha: float, beta: float, method: Method = task_arithmetic, **options: Any
) -> Expression:
    """A merge of deltas with the scale alpha + beta (l - 1) / (L - 1) in block l of L: alpha in the first, alpha + beta in
    the last.

    `method` is any that has a base and a `scale`. Tensors before the blocks have the scale of the first block, those
    behind them that of the last. In a recipe file: `scale: {ramp: [alpha, alpha + beta]}`. Raises UsageError where the
    method has no `scale`.
    """
    if "scale" not in method.options:
        raise UsageError("recipe.no-scale", f"{method.name} has no `scale` that could grow from block to block", fix="method=fs.ties")
    return method(base, *models, scale=Ramp((alpha, alpha + beta)), **options)
