"""Weight matching (Ainsworth et al. 2022, Git Re-Basin, arXiv 2209.04836): the order of one model's units in which its
weights are nearest to another's.

Units of one layer are independent of all others here (see symmetries.py), so each is one linear assignment, solved
exactly; heads are an assignment of assignments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fluxsmith.analysis.symmetries import Place, Units
from fluxsmith.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["assignment", "match_units", "places_of"]

Read = Callable[[str], "Tensor"]


def assignment(similarity: Tensor) -> Tensor:
    """The order p with the largest sum of similarity[p[j], j]; similarity [n, n] of units of A (rows) and B (columns).

    Raises UsageError where scipy is missing.
    """
    import torch

    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise UsageError("usage.missing-extra", "scipy is not installed", fix="pip install scipy") from None
    _, order = linear_sum_assignment(similarity.mT.double().numpy(), maximize=True)
    return torch.from_numpy(order).long()


def match_units(units: Units, a: Read, b: Read) -> Tensor:
    """The order of A's units nearest to B's: new unit j is old unit order[j]. `a` and `b` read tensors by name."""
    similarity = _products(units, a, b)
    return _match_heads(units, similarity, a, b) if units.head else assignment(similarity)


def _products(units: Units, a: Read, b: Read) -> Tensor:
    """Scalar products of every unit of A [count] with every unit of B [count], over all that belongs to a unit."""
    import torch

    total = torch.zeros(units.count, units.count)
    for place, columns in [*((p, False) for p in units.rows), *((p, True) for p in units.columns)]:
        one, other = (_part(read(place.name), place, units.count, columns) for read in (a, b))
        total.addmm_(one, other.mT)
    return total


def _part(tensor: Tensor, place: Place, count: int, columns: bool = False) -> Tensor:
    """The units' own numbers [count, ...] in a tensor."""
    part = tensor[:, place.start : place.start + count].mT if columns else tensor[place.start : place.start + count]
    return part.reshape(count, -1)


def _match_heads(units: Units, similarity: Tensor, a: Read, b: Read) -> Tensor:
    """Heads by the sum of what q and k have in common and what v has in its best order, which comes with it."""
    import torch

    count, size = units.count // units.head, units.head
    heads = torch.zeros(count, count)
    for place in units.fixed:
        one, other = (_part(read(place.name), place, units.count).reshape(count, -1) for read in (a, b))
        heads.addmm_(one, other.mT)
    blocks = similarity.reshape(count, size, count, size).permute(0, 2, 1, 3)
    inner = torch.empty(count, count, size, dtype=torch.long)
    dims = torch.arange(size)
    for i in range(count):
        for j in range(count):
            inner[i, j] = assignment(blocks[i, j])
            heads[i, j] += blocks[i, j][inner[i, j], dims].sum()
    chosen = assignment(heads)
    return torch.cat([size * i + inner[i, j] for j, i in enumerate(chosen.tolist())])


def places_of(units: Units, order: Tensor) -> Mapping[tuple[Place, bool], Tensor]:
    """Which row (False) or column (True) of a tensor stands at each of the units' places when they are put in `order`."""
    import torch

    found = {(place, False): place.start + order for place in units.rows}
    found |= {(place, True): place.start + order for place in units.columns}
    if units.head:
        heads = order[:: units.head] // units.head
        follow = (heads[:, None] * units.head + torch.arange(units.head)).reshape(-1)
        found |= {(place, False): place.start + follow for place in units.fixed}
    return found
