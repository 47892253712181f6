"""Scalar products of the columns of two tensors."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["column_products"]


def column_products(a: "Tensor", b: "Tensor") -> "list[Tensor]":
    """Per column of [rows, width]: the number of rows, <a, a>, <b, b> and <a, b>, in float64.

    A tensor of one row is a vector in the eyes of a method: it is up to that to add its columns.
    """
    x, y = a.double(), b.double()
    return [x.new_full((x.shape[1],), x.shape[0]), (x * x).sum(0), (y * y).sum(0), (x * y).sum(0)]
