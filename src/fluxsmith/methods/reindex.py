"""Rows and columns of a tensor in another order: how a permuted model is written."""

from fluxsmith.methods.base import Param, Weight, merge_method

__all__ = ["reindex"]


@merge_method(whole=True, workspace=lambda rows, columns, inputs: 2 * rows * columns, propagates=True)
def reindex(a: Weight, order: Param) -> Weight:
    """a[order of the rows][:, order of the columns]; `order` has the numbers of the rows, then those of the columns.

    A vector has rows only. `fluxsmith rebasin` makes such files of orders; a tensor without an order stays as it is
    under `missing: skip`.
    """
    index = order.reshape(-1).long()
    rows = a.index_select(0, index[: a.shape[0]])
    return rows if a.dim() < 2 else rows.index_select(1, index[a.shape[0] :])
