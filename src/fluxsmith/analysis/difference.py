"""How two checkpoints differ, tensor by tensor and block by block, whatever their layouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fluxsmith.analysis.kinds import block_of, component_of, in_order
from fluxsmith.analysis.survey import CHUNK, Progress, Row, is_readable, product, survey
from fluxsmith.engine.merging import opener
from fluxsmith.engine.streaming import Settings
from fluxsmith.errors import IncompatibleError
from fluxsmith.layouts import Bound, known_tables
from fluxsmith.layouts.detection import open_model

if TYPE_CHECKING:
    from fluxsmith.analysis.survey import Tile
    from fluxsmith.io.checkpoint import Checkpoint
    from fluxsmith.io.views import View

__all__ = ["Difference", "Side", "Sums", "TensorDifference", "compare"]


@dataclass(frozen=True)
class Sums:
    """Sums over the elements a of A and b of B, in float64. Elements that are not finite on either side are counted
    and left out of the four products; `conflicts` are elements of opposite sign, `changed` those with a != b.
    """

    count: int
    aa: float
    bb: float
    ab: float
    dd: float
    conflicts: int
    changed: int
    nonfinite: int

    @property
    def relative(self) -> float:
        """||A - B|| / ||A||; infinite where only B has anything but zeros."""
        return math.sqrt(self.dd / self.aa) if self.aa else math.inf if self.dd else 0.0

    @property
    def cosine(self) -> float | None:
        """Of the angle between A and B; None where one of them is zero."""
        if not self.changed:
            return 1.0
        if not self.aa or not self.bb:
            return None
        return max(-1.0, min(1.0, self.ab / (math.sqrt(self.aa) * math.sqrt(self.bb))))

    @property
    def conflict_share(self) -> float:
        return self.conflicts / self.count if self.count else 0.0

    @property
    def changed_share(self) -> float:
        return self.changed / self.count if self.count else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Derived numbers, then the sums; `relative` is null where A is zero and B is not."""
        derived = {
            "relative": self.relative if math.isfinite(self.relative) else None, "cosine": self.cosine,
            "conflict_share": self.conflict_share, "changed_share": self.changed_share,
        }  # fmt: skip
        return {**derived, **vars(self)}

    @classmethod
    def over(cls, rows: Iterable[Row], count: int) -> Sums:
        """Rows (aa, bb, ab, dd, conflicts, changed, nonfinite) added up, without an effect of their order."""
        columns = [math.fsum(column) for column in zip(*rows, strict=True)] or [0.0] * 7
        aa, bb, ab, dd, conflicts, changed, nonfinite = columns
        return cls(count, aa, bb, ab, dd, int(conflicts), int(changed), int(nonfinite))

    def row(self) -> Row:
        """The sums without the count."""
        return self.aa, self.bb, self.ab, self.dd, self.conflicts, self.changed, self.nonfinite


@dataclass(frozen=True)
class TensorDifference:
    """One tensor that both have, by its canonical name; `block` is `double.N`, `single.N`, or the part it is in."""

    name: str
    block: str
    shape: tuple[int, ...]
    sums: Sums


@dataclass(frozen=True)
class Side:
    """One of the two checkpoints."""

    reference: str
    family: str
    layout: str
    dtypes: tuple[str, ...]
    tensors: int
    parameters: int


@dataclass(frozen=True)
class Difference:
    """A comparison. `other_shapes` are tensors that both have in different shapes, `unread` those without plain
    numbers (complex or sub-byte types): neither is compared.
    """

    a: Side
    b: Side
    tensors: tuple[TensorDifference, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    other_shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    unread: tuple[str, ...]

    @property
    def blocks(self) -> dict[str, Sums]:
        """Sums by block, in the order of the model."""
        members: dict[str, list[Sums]] = {}
        for tensor in self.tensors:
            members.setdefault(tensor.block, []).append(tensor.sums)
        return {block: _total(sums) for block, sums in members.items()}

    @property
    def total(self) -> Sums:
        return _total([tensor.sums for tensor in self.tensors])

    @property
    def equal_tensors(self) -> int:
        return sum(not tensor.sums.changed for tensor in self.tensors)

    @property
    def identical(self) -> bool:
        """Whether both have the same tensors with the same values; layouts and types may differ."""
        unlike = self.only_in_a or self.only_in_b or self.other_shapes or self.unread
        return not unlike and self.equal_tensors == len(self.tensors)

    def top(self, count: int) -> list[TensorDifference]:
        """The tensors that changed most, relative to their norm in A."""
        changed = [tensor for tensor in self.tensors if tensor.sums.changed]
        return sorted(changed, key=lambda t: (-t.sums.relative, t.name))[:count]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "a": vars(self.a), "b": vars(self.b), "identical": self.identical, "equal_tensors": self.equal_tensors,
            "total": self.total.as_dict(),
            "blocks": [{"block": block, **sums.as_dict()} for block, sums in self.blocks.items()],
            "tensors": [{"name": t.name, "block": t.block, "shape": t.shape, **t.sums.as_dict()} for t in self.tensors],
            "only_in_a": self.only_in_a, "only_in_b": self.only_in_b,
            "other_shapes": [{"name": name, "a": a, "b": b} for name, (a, b) in self.other_shapes.items()],
            "unread": self.unread,
        }  # fmt: skip


def compare(
    a: str,
    b: str,
    *,
    settings: Settings | None = None,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Difference:
    """Compare two checkpoints by their references, in constant memory; the numbers do not depend on the threads.

    Files on the Hub are downloaded once both headers have been found to fit.
    Raises FileError or HubError where one cannot be opened, IncompatibleError where they are of different families,
    one of them is incomplete or quantised, or they have no tensor in common.
    """
    one, other = _open_both(a, b, opener(download=False, allow_pickle=allow_pickle))
    if any(file.remote for bound in (one, other) for file in bound.checkpoint.files):
        one, other = _open_both(a, b, opener(download=True, allow_pickle=allow_pickle))
    left, right = _views(one), _views(other)
    common = [name for name in left if name in right]
    unlike = {name: (left[name].shape, right[name].shape) for name in common if left[name].shape != right[name].shape}
    unread = tuple(name for name in common if name not in unlike and not (is_readable(left[name]) and is_readable(right[name])))
    loads = {name: (left[name], right[name]) for name in common if name not in unlike and name not in unread}
    if not loads:
        raise _nothing_in_common(one, other, unlike)
    rows = survey(loads, _look, settings=settings, progress=progress)
    tensors = [
        TensorDifference(name, _block(one, name), view.shape, Sums.over(rows[name], view.count))
        for name, view in ((name, left[name]) for name in (in_order(loads) if one.layout == "structural" else loads))
    ]
    return Difference(
        _side(one), _side(other), tuple(tensors),
        tuple(name for name in left if name not in right), tuple(name for name in right if name not in left),
        unlike, unread,
    )  # fmt: skip


def _open_both(a: str, b: str, open_reference: Callable[[str], Checkpoint]) -> tuple[Bound, Bound]:
    one, other = _bind(open_reference(a)), _bind(open_reference(b))
    if one.family != other.family:
        raise IncompatibleError(
            "diff.different-families",
            f"{a} and {b} are of different families, so there is nothing to compare",
            facts={a: one.family, b: other.family},
            fix="fluxsmith inspect shows what each of them is",
        )
    return one, other


def _bind(checkpoint: Checkpoint) -> Bound:
    """As a model; what is no model (an adapter, a ControlNet, ...) is compared key by key."""
    try:
        return open_model(checkpoint, known_tables())
    except IncompatibleError as error:
        if error.code != "model.wrong-kind":
            raise
        return open_model(checkpoint, known_tables(), force="structural")


def _views(bound: Bound) -> dict[str, View]:
    """Canonical tensors, then those of other components by their own keys."""
    return {**bound.views, **{key: bound.checkpoint.tensors[key] for key in bound.extras}}


def _block(bound: Bound, name: str) -> str:
    if name not in bound.spec:
        return component_of(name)
    if bound.layout == "structural":
        return block_of(name)
    return bound.spec[name].block or name.split(".")[0]


def _nothing_in_common(a: Bound, b: Bound, unlike: Mapping[str, object]) -> IncompatibleError:
    what = f"{len(unlike)} tensors, all in other shapes" if unlike else "no tensor"
    firsts = {bound.checkpoint.reference: next(iter(bound.views), "nothing") for bound in (a, b)}
    return IncompatibleError(
        "diff.nothing-in-common", f"{a.checkpoint.reference} and {b.checkpoint.reference} have {what} in common", facts=firsts
    )


def _side(bound: Bound) -> Side:
    checkpoint = bound.checkpoint
    parameters = sum(view.count for view in bound.views.values())
    return Side(
        checkpoint.reference, bound.family, bound.layout, tuple(sorted(bound.checkpoint.kinds)), len(checkpoint.tensors), parameters
    )


def _total(sums: Sequence[Sums]) -> Sums:
    return Sums.over([s.row() for s in sums], sum(s.count for s in sums))


def _look(a: Tile, b: Tile) -> Row:
    parts = [_look_at(a[i : i + CHUNK], b[i : i + CHUNK]) for i in range(0, len(a), CHUNK)]
    return tuple(math.fsum(column) for column in zip(*parts, strict=True))


def _look_at(a: Tile, b: Tile) -> Row:
    import numpy as np

    x = a.astype(np.float64)
    aa = product(x, x)
    changed = int(np.count_nonzero(a != b))
    if not changed and math.isfinite(aa):
        return aa, aa, aa, 0.0, 0.0, 0.0, 0.0
    y = b.astype(np.float64)
    bb, bad = product(y, y), 0
    if not math.isfinite(aa + bb):
        finite = np.isfinite(x) & np.isfinite(y)
        bad = len(x) - int(np.count_nonzero(finite))
        changed -= int(np.count_nonzero(np.isnan(x) & np.isnan(y)))
        x, y = np.where(finite, x, 0.0), np.where(finite, y, 0.0)
        aa, bb = product(x, x), product(y, y)
    opposite = np.count_nonzero((x < 0) & (y > 0)) + np.count_nonzero((x > 0) & (y < 0))
    ab = product(x, y)
    x -= y
    return aa, bb, ab, product(x, x), float(opposite), float(changed), float(bad)
