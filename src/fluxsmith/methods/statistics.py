"""Statistics of whole tensors, gathered tile by tile before a method runs. Their values do not depend on the order of
the tiles or the number of threads: counts are integers, and sums of tiles are added in the order of the tiles.

    sums(f)            f gives numbers per tile; their sums over the tensor
    column_sums(f)     f gives a number per column of a tile of rows; their sums over all rows
    gram(f)            f gives tensors per tile; the scalar products of each with each
    kth_magnitude(f)   f gives tensors per tile; the k-th largest magnitude of each, exact
    magnitude_ranks(f) f gives tensors per tile; which share of each has a smaller magnitude than a given one
    when(option, word, statistic)   only measured where the option has that value, else None

`f` is called with the method's inputs as the method sees them (flat tiles, or rows), and by name with those of its
options, earlier statistics and masks that its signature has.
"""

from __future__ import annotations

import inspect
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Measurement", "Statistic", "column_sums", "gram", "kth_magnitude", "magnitude_ranks", "sums", "when"]

Tiles = Sequence["Tensor"]
Options = Mapping[str, Any]


class Measurement(ABC):
    """One statistic being gathered over one tensor."""

    #: Elements to look at before the first pass, spread over the tensor (0: none).
    sample_size = 0

    def prepare(self, sample: Tiles) -> None:  # noqa: B027 - most statistics need no sample
        """Look at a sample of the inputs; called once, where `sample_size` is not 0."""

    @abstractmethod
    def visit(self, tile: int, inputs: Tiles, drawn: Options = {}) -> None:  # noqa: B006 - never changed
        """Take in tile number `tile`; called from several threads. `drawn` has the tile's masks by name."""

    @abstractmethod
    def finish_pass(self) -> bool:
        """Close a pass over all tiles; True where another pass is needed."""

    @abstractmethod
    def value(self) -> Any:
        """The statistic."""


class Statistic(ABC):
    """What a method asks to be measured."""

    @abstractmethod
    def begin(self, count: int, options: Options) -> Measurement:
        """Start measuring tensors of `count` elements; `options` has the values of earlier statistics, too."""

    def needed(self, options: Options) -> bool:
        """Whether there is anything to measure with these options; where there is not, the value is None."""
        return True


def _call(function: Callable[..., Any], inputs: Tiles, options: Options) -> Any:
    """The function on tiles, with those of the options that it has parameters for."""
    names = _parameters(function)
    return function(*inputs, **{name: value for name, value in options.items() if name in names})


@cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    """The names of a function's parameters: asked for every tile, read once."""
    return frozenset(inspect.signature(function).parameters)


@dataclass(frozen=True)
class sums(Statistic):  # noqa: N801 - reads as a function where it is declared
    """Sums over a tensor of numbers that `function(*tiles, ...)` computes per tile, as a list of float."""

    function: Callable[..., Sequence[Any]]

    def begin(self, count: int, options: Options) -> Measurement:
        return _Sums(self.function, options)


class _Sums(Measurement):
    def __init__(self, function: Callable[..., Sequence[Any]], options: Options) -> None:
        self._function, self._options = function, options
        self._parts: dict[int, list[float]] = {}

    def visit(self, tile: int, inputs: Tiles, drawn: Options = {}) -> None:  # noqa: B006
        self._parts[tile] = [float(x) for x in _call(self._function, inputs, {**self._options, **drawn})]

    def finish_pass(self) -> bool:
        return False

    def value(self) -> list[float]:
        rows = [self._parts[tile] for tile in sorted(self._parts)]
        return [sum(column) for column in zip(*rows, strict=True)]


@dataclass(frozen=True)
class column_sums(Statistic):  # noqa: N801
    """Sums over the rows of a tensor of what `function(*tiles, ...)` gives for every column of a tile: a list of float64
    tensors [width]. For methods that see rows.
    """

    function: Callable[..., Sequence[Any]]

    def begin(self, count: int, options: Options) -> Measurement:
        return _ColumnSums(self.function, options)


class _ColumnSums(Measurement):
    def __init__(self, function: Callable[..., Sequence[Any]], options: Options) -> None:
        self._function, self._options = function, options
        self._parts: dict[int, list[Tensor]] = {}

    def visit(self, tile: int, inputs: Tiles, drawn: Options = {}) -> None:  # noqa: B006
        self._parts[tile] = [column.double() for column in _call(self._function, inputs, {**self._options, **drawn})]

    def finish_pass(self) -> bool:
        return False

    def value(self) -> list[Tensor]:
        import torch

        parts = [self._parts[tile] for tile in sorted(self._parts)]
        return [torch.stack(column).sum(0) for column in zip(*parts, strict=True)]


@dataclass(frozen=True)
class when(Statistic):  # noqa: N801
    """A statistic that is measured only where `option` has the value `word`; else its value is None, without a pass."""

    option: str
    word: Any
    statistic: Statistic

    def begin(self, count: int, options: Options) -> Measurement:
        return self.statistic.begin(count, options)

    def needed(self, options: Options) -> bool:
        return options.get(self.option) == self.word


@dataclass(frozen=True)
class gram(Statistic):  # noqa: N801
    """The matrix of scalar products <t_i, t_j> of the tensors that `function(*tiles, ...)` gives, in float64.

    Whatever lives in the span of the tensors (angles, means on a sphere, medians) is a function of this matrix alone.
    """

    function: Callable[..., Sequence[Any]]

    def begin(self, count: int, options: Options) -> Measurement:
        return _Gram(self.function, options)


class _Gram(Measurement):
    def __init__(self, function: Callable[..., Sequence[Any]], options: Options) -> None:
        self._function, self._options = function, options
        self._parts: dict[int, list[list[float]]] = {}

    def visit(self, tile: int, inputs: Tiles, drawn: Options = {}) -> None:  # noqa: B006
        import torch

        tensors = _call(self._function, inputs, {**self._options, **drawn})
        columns = torch.stack([tensor.reshape(-1).double() for tensor in tensors])
        self._parts[tile] = (columns @ columns.T).tolist()

    def finish_pass(self) -> bool:
        return False

    def value(self) -> list[list[float]]:
        parts = [self._parts[tile] for tile in sorted(self._parts)]
        size = len(parts[0])
        return [[sum(part[i][j] for part in parts) for j in range(size)] for i in range(size)]


@dataclass(frozen=True)
class magnitude_ranks(Statistic):  # noqa: N801
    """For each tensor that `function(*tiles, ...)` gives: a function from magnitudes to their rank in (0, 1).

    Magnitudes are counted by the upper 16 bits of their float32 form, so that two within 1/128 of each other may share
    a rank; the rank of a bin is that of its middle. One pass, 2^16 counts per tensor.
    """

    function: Callable[..., Sequence[Any]]

    def begin(self, count: int, options: Options) -> Measurement:
        return _Ranks(self.function, count, options)


class _Ranks(Measurement):
    def __init__(self, function: Callable[..., Sequence[Any]], count: int, options: Options) -> None:
        self._function, self._count, self._options = function, count, options
        self._counts: list[Any] = []
        self._lock = threading.Lock()

    def visit(self, tile: int, inputs: Tiles, drawn: Options = {}) -> None:  # noqa: B006
        import torch

        tensors = _call(self._function, inputs, {**self._options, **drawn})
        counts = [torch.bincount(_upper_bits(tensor).reshape(-1), minlength=1 << 16).cpu() for tensor in tensors]
        with self._lock:
            self._counts = [a + b for a, b in zip(self._counts, counts, strict=True)] if self._counts else counts

    def finish_pass(self) -> bool:
        return False

    def value(self) -> list[Callable[[Tensor], Tensor]]:
        def ranks(counts: Any) -> Callable[[Tensor], Tensor]:
            middle = ((counts.cumsum(0) - counts / 2) / self._count).float()
            return lambda tensor: middle.to(tensor.device)[_upper_bits(tensor)]

        return [ranks(counts) for counts in self._counts]


def _upper_bits(tensor: Tensor) -> Tensor:
    """Sign-less upper half of the float32 form of every element: ordered as the magnitudes are."""
    import torch

    return tensor.abs().float().view(torch.int32) >> 16


@dataclass(frozen=True)
class kth_magnitude(Statistic):  # noqa: N801 - reads as a function where it is declared
    """For each tensor that `function(*tiles, ...)` gives: the smallest magnitude among the `kept(count, share)` largest.

    `share` names the option with the share that is kept (a number, or one per tensor), or is a function that gives one
    per tensor, of any form that `kept` knows, called by name with options and earlier statistics. A threshold of +inf
    keeps nothing, 0 keeps all. Ties at the threshold are all kept by whoever compares with >=.
    """

    function: Callable[..., Sequence[Any]]
    share: str | Callable[..., Sequence[Any]]
    kept: Callable[[int, Any], int]

    def begin(self, count: int, options: Options) -> Measurement:
        return _KthMagnitudes(self, count, options)


class _KthMagnitudes(Measurement):
    sample_size = 1 << 16

    def __init__(self, statistic: kth_magnitude, count: int, options: Options) -> None:
        self._statistic, self._count, self._options = statistic, count, options
        self._searches: list[_Search] | None = None
        self._lock = threading.Lock()

    def prepare(self, sample: Tiles) -> None:
        for search, delta in self._pairs(sample, {}):
            search.bracket_from(delta.abs())

    def visit(self, tile: int, inputs: Tiles, drawn: Options = {}) -> None:  # noqa: B006
        for search, delta in self._pairs(inputs, drawn):
            search.visit(delta)

    def _pairs(self, inputs: Tiles, drawn: Options) -> list[tuple[_Search, Tensor]]:
        deltas = [delta.reshape(-1) for delta in _call(self._statistic.function, inputs, {**self._options, **drawn})]
        with self._lock:
            if self._searches is None:
                self._searches = [_Search(self._count, self._kept(i)) for i in range(len(deltas))]
        return list(zip(self._searches, deltas, strict=True))

    def _kept(self, index: int) -> int:
        named = self._statistic.share
        share = self._options[named] if isinstance(named, str) else _call(named, (), self._options)
        return self._statistic.kept(self._count, share if isinstance(share, (int, float)) else share[index])

    def finish_pass(self) -> bool:
        return any([search.finish_pass() for search in self._searches or []])

    def value(self) -> list[float]:
        return [search.result for search in self._searches or [] if search.result is not None]


class _Search:
    """The k-th largest magnitude of one streamed tensor.

    First pass: values inside a bracket, guessed from a sample, are collected and those above it counted. Where the
    guess was wrong, or too many values are collected, two more passes count bit patterns of the magnitudes (the bits
    of non-negative floats are ordered as their values), 16 bits at a time: always exact, never more than 2^17 counts.
    """

    CAP = 1 << 23

    def __init__(self, count: int, kept: int) -> None:
        self.count, self.kept = count, kept
        self.result: float | None = float("inf") if kept <= 0 else 0.0 if kept >= count else None
        self._low, self._high = -1.0, float("inf")
        self._above, self._collected = 0, 0
        self._inside: Any = None
        self._stage, self._overflow = "bracket", False
        self._counts: Any = None
        self._prefix = 0
        self._lock = threading.Lock()

    def bracket_from(self, sample: Tensor) -> None:
        """Guess an open interval that holds the threshold with near certainty (8 standard errors of the rank)."""
        if self.result is not None or self.count <= self.CAP // 4:
            return
        ordered = sample.sort(descending=True).values
        share = self.kept / self.count
        error = 8 * (share * (1 - share) / len(ordered)) ** 0.5 + 16 / len(ordered)
        first, last = int((share - error) * len(ordered)), int((share + error) * len(ordered))
        self._high = float(ordered[first]) if first > 0 else float("inf")
        low = float(ordered[last]) if last < len(ordered) else 0.0
        # One step below the sampled value: values that equal it are inside.
        self._low = low * (1 - 2**-20) if low > 0 else -1.0

    def visit(self, delta: Tensor) -> None:
        if self.result is not None:
            return
        magnitude = delta.abs()
        if self._stage == "bracket":
            self._collect(magnitude)
        else:
            self._count_bits(magnitude)

    def _collect(self, magnitude: Tensor) -> None:
        import numpy as np

        # On the CPU numpy compares and picks several times faster than torch.
        values: Any = magnitude.numpy() if magnitude.device.type == "cpu" and magnitude.element_size() == 4 else magnitude
        beyond = values > self._high
        inside = values[(values > self._low) & ~beyond]
        above = int(np.count_nonzero(beyond)) if isinstance(beyond, np.ndarray) else int(beyond.count_nonzero())
        with self._lock:
            self._above += above
            self._keep(inside if isinstance(inside, np.ndarray) else inside.float().cpu().numpy())

    def _keep(self, inside: Any) -> None:
        """Put values into one buffer: pieces of their own, between tiles that come and go, would break up the heap."""
        import numpy as np

        first, self._collected = self._collected, self._collected + len(inside)
        if self._collected > self.CAP:
            self._overflow, self._inside = True, None
        elif not self._overflow:
            if self._inside is None:
                self._inside = np.empty(min(self.count, self.CAP), np.float32)
            self._inside[first : self._collected] = inside

    def _count_bits(self, magnitude: Tensor) -> None:
        import torch

        bits = magnitude.float().view(torch.int32)
        high = bits >> 16
        part = high if self._stage == "high" else bits[high == self._prefix] & 0xFFFF
        counts = torch.bincount(part, minlength=1 << 16).cpu()
        with self._lock:
            self._counts = counts if self._counts is None else self._counts + counts

    def finish_pass(self) -> bool:
        """True where another pass is needed."""
        if self.result is not None:
            return False
        if self._stage == "bracket":
            return self._close_bracket()
        return self._close_counts()

    def _close_bracket(self) -> bool:
        values, self._inside = self._inside, None
        rank = self.kept - self._above
        if not self._overflow and 0 < rank <= self._collected:
            self.result = _kth_largest(values[: self._collected], rank)
            return False
        self._stage = "high"
        return True

    def _close_counts(self) -> bool:
        import struct

        counts = self._counts.flip(0).cumsum(0)
        rank = self.kept if self._stage == "high" else self._rank
        found = int((counts < rank).sum())
        prefix = (1 << 16) - 1 - found
        passed = int(counts[found - 1]) if found else 0
        self._counts = None
        if self._stage == "high":
            self._prefix, self._rank, self._stage = prefix, rank - passed, "low"
            return True
        self.result = struct.unpack("<f", struct.pack("<I", self._prefix << 16 | prefix))[0]
        return False


def _kth_largest(values: Any, rank: int) -> float:
    """The rank-th largest of a numpy vector, which is reordered; its introselect is several times faster than torch's."""
    place = len(values) - rank
    values.partition(place)
    return float(values[place])
