"""Add only what one fine-tune learned that another did not."""

from fluxsmith.methods.base import Delta, Measured, Param, Weight, merge_method
from fluxsmith.methods.statistics import gram

__all__ = ["perpendicular"]


def _differences(a: Weight, b: Weight, c: Weight) -> list[Delta]:
    return [a - c, b - c]


@merge_method(statistics={"products": gram(_differences)}, propagates=True, paper="hako-mikan, sd-webui-supermerger; sd-mecha")
def perpendicular(a: Weight, b: Weight, c: Weight, *, products: Measured, alpha: float | Param = 1.0) -> Weight:
    """a + alpha (db - da <da, db> / <da, da>), with da = a - c and db = b - c: the part of db at right angles to da.

    Of whole tensors; where a equals c nothing is parallel, and all of db is added.
    """
    parallel = products[0][1] / products[0][0] if products[0][0] else 0.0
    rest = (b - c).sub_(a - c, alpha=parallel)
    return a.add(rest, alpha=alpha) if isinstance(alpha, (int, float)) else a.addcmul(rest, alpha)
