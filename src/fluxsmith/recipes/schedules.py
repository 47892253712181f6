"""Numbers that differ from tensor to tensor: a map from selectors to numbers or ramps, with a default."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from fluxsmith.errors import Position, RecipeError
from fluxsmith.layouts.table import Canonical
from fluxsmith.recipes.selectors import Selector

__all__ = ["BlockOrder", "Number", "Ramp", "Schedule", "block_orders", "resolve", "shown_blocks"]


@dataclass(frozen=True)
class Ramp:
    """Numbers spread evenly over the blocks that are meant, linear in between.

    Tensors before the first block get the first number, those after the last block the last.
    """

    points: tuple[float, ...]

    def at(self, place: float) -> float:
        """The number at `place` in [0, 1]."""
        steps = len(self.points) - 1
        left = min(int(place * steps), steps - 1)
        share = place * steps - left
        return self.points[left] + (self.points[left + 1] - self.points[left]) * share


@dataclass(frozen=True)
class Schedule:
    """`entries` refine `default`; where several match, the last one written wins. `at` is where they were written."""

    default: "float | Ramp | None"
    entries: tuple[tuple[Selector, "float | Ramp"], ...] = ()
    at: Position | None = field(default=None, compare=False)


Number = float | Ramp | Schedule


@dataclass(frozen=True)
class BlockOrder:
    """The blocks of one component as they are run, and the tensors that come after the last of them."""

    blocks: tuple[str, ...]
    after: frozenset[str]


def block_orders(tensors: Iterable[Canonical]) -> dict[str, BlockOrder]:
    """The blocks of every component of a model, from its tensors in the order in which they are run."""
    members: dict[str, list[Canonical]] = {}
    for tensor in tensors:
        members.setdefault(tensor.component, []).append(tensor)
    orders: dict[str, BlockOrder] = {}
    for component, own in members.items():
        kinds: dict[str, set[int]] = {}
        last = -1
        for place, tensor in enumerate(own):
            if tensor.block is not None:
                kind, _, number = tensor.block.rpartition(".")
                kinds.setdefault(kind, set()).add(int(number))
                last = place
        blocks = tuple(f"{kind}.{number}" for kind, numbers in kinds.items() for number in sorted(numbers))
        orders[component] = BlockOrder(blocks, frozenset(tensor.name for tensor in own[last + 1 :]) if blocks else frozenset())
    return orders


def shown_blocks(tensors: Iterable[Canonical]) -> list[str]:
    """The blocks of a model in short: `double.0-18`, `single.0-37`."""
    counts: dict[str, int] = {}
    for order in block_orders(tensors).values():
        for block in order.blocks:
            kind, _, number = block.rpartition(".")
            counts[kind] = max(counts.get(kind, 0), int(number))
    return [f"{kind}.0-{last}" if last else f"{kind}.0" for kind, last in counts.items()]


def resolve(value: "Number", tensor: Canonical, segment: str | None, blocks: Mapping[str, BlockOrder], used: set[str]) -> float:
    """The number for one tensor (or one named part of it).

    `blocks` gives the blocks of the model per component; selectors that matched are added to `used`.
    Raises RecipeError where nothing matches and there is no default.
    """
    if isinstance(value, Ramp):
        return value.at(_place(tensor, None, blocks))
    if not isinstance(value, Schedule):
        return value
    chosen: tuple[Selector | None, float | Ramp] | None = None if value.default is None else (None, value.default)
    for selector, number in value.entries:
        if selector.matches(tensor, segment):
            used.add(selector.text)
            chosen = (selector, number)
    if chosen is None:
        raise RecipeError(
            "recipe.no-default",
            f"no number is given for {tensor.name}",
            facts={"selectors": ", ".join(selector.text for selector, _ in value.entries)},
            fix="add `default: ...` to the map",
            at=value.at,
        )
    selector, number = chosen
    return number.at(_place(tensor, selector, blocks)) if isinstance(number, Ramp) else number


def _place(tensor: Canonical, selector: Selector | None, blocks: Mapping[str, BlockOrder]) -> float:
    """Where a tensor stands in the run of blocks that a ramp covers, from 0 to 1; every component has its own run."""
    run = blocks.get(tensor.component, BlockOrder((), frozenset()))
    order = list(run.blocks)
    if selector is not None:
        order = [block for block in order if selector.matches(_block_probe(block))] or order
    if tensor.block not in order:
        return 1.0 if tensor.name in run.after else 0.0
    return order.index(tensor.block) / max(len(order) - 1, 1)


def _block_probe(block: str) -> Canonical:
    """A tensor that stands for its whole block."""
    return Canonical(block, (), block, frozenset(), (), {})


def check_points(points: Sequence[float]) -> None:
    """A ramp needs two numbers or more."""
    if len(points) < 2 or any(a != a for pair in pairwise(points) for a in pair):
        raise RecipeError("recipe.bad-ramp", "a ramp needs at least two numbers", fix="write {ramp: [0.2, 0.8]}")
