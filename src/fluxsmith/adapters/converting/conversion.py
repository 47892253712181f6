"""An adapter in another dialect, with the same delta: its modules where the other layout has its tensors.

A module's target is rows of a canonical tensor. Every target of the new layout is put together from the modules whose
rows it has: the same module, rows of one (`cutting`), several as one (`joining`), all of them exact. What has no exact form there
becomes dense (`diff`), or is an error that says how: nothing is approximated unless a rank is asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fluxsmith.adapters.converting.cutting import cut
from fluxsmith.adapters.converting.joining import Part, join
from fluxsmith.adapters.converting.materialising import Shape, as_lora, dense
from fluxsmith.adapters.dialects import Dialect
from fluxsmith.adapters.dialects.writing import Writing
from fluxsmith.adapters.module import Adapter, Module, Span, Target
from fluxsmith.adapters.targets import solve_partial, superset
from fluxsmith.adapters.tensors import read_module
from fluxsmith.adapters.writing.places import targets_of
from fluxsmith.adapters.writing.spelling import titles_of
from fluxsmith.adapters.writing.translating import decomposes, translated
from fluxsmith.errors import IncompatibleError
from fluxsmith.layouts import Bound, Canonical, Table, table_of

if TYPE_CHECKING:
    from fluxsmith.adapters.extracting.rank import RankRule
    from fluxsmith.adapters.tensors import ModuleTensors

__all__ = ["Conversion", "Converted", "Source", "dims_of", "model_tensors", "sources_of"]

#: Widths that every published model of a family has, where an adapter does not tell: symbol -> multiple of another.
_USUAL: dict[str, dict[str, tuple[str, int]]] = {"flux1": {"M": ("H", 4)}, "chroma": {"M": ("H", 4)}}


@dataclass(frozen=True, slots=True)
class Source:
    """Rows [start, start + rows) of a module are the next rows of a target; `module` None: no module has them."""

    module: Module | None
    start: int
    rows: int


@dataclass(frozen=True)
class Converted:
    """A module in its new place: how it came there (`same`, `cut`, `joined`, `dense`, `low rank`), and the relative residual of the
    last, 0 for all others."""

    module: ModuleTensors
    how: str
    residual: float = 0.0


@dataclass
class Conversion:
    """The modules of an adapter as a dialect has them.

    `base` is the model it is for, where a delta has to be made of it (DoRA by columns, OFT, BOFT). `shape` is `diff` or
    `lora` (with `rule`) where all modules are to be that, None to keep their algorithm. Iterating reads, converts and
    gives one module after another.
    """

    adapter: Adapter
    dialect: Dialect
    base: Bound | None = None
    shape: Shape | None = None
    rule: RankRule | None = None
    notes: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        if self.dialect.writing is None:
            raise IncompatibleError("adapter.not-writable", f"the dialect {self.dialect.name} is only read", fix="fluxsmith list dialects")
        self.writing: Writing = self.dialect.writing
        self._groups: dict[str, list[Module]] = {}
        for module in self.adapter.modules:
            self._groups.setdefault(module.target.tensor, []).append(module)
        self._assumed: list[str] = []
        self._tensors = {tensor.name: tensor for tensor in model_tensors(self.adapter, self.base, self._assumed)}

    def __iter__(self) -> Iterator[Converted]:
        for name in self._groups:
            for target, sources in self._pairs(name):
                yield self._convert(target, sources)

    @property
    def changed(self) -> dict[str, Canonical]:
        """The canonical tensors that the adapter changes, in its order."""
        return {name: self._tensors[name] for name in self._groups}

    def exact(self, tensor: str) -> Iterator[ModuleTensors]:
        """The modules of a canonical tensor in the dialect's places, in a form that loses nothing: their own algorithm or a
        difference, whether the dialect can hold that or not."""
        for target, sources in self._pairs(tensor) if tensor in self._groups else ():
            found = self._exactly(target, sources)
            yield dense(target, sources, self.base) if found is None else found.module

    def _pairs(self, tensor: str) -> Iterator[tuple[Target, list[Source]]]:
        """The places of a canonical tensor of which the adapter changes rows."""
        modules = self._groups[tensor]
        for target in self._places(self._tensors[tensor], modules):
            sources = sources_of(target, modules)
            if all(source.module is None for source in sources):
                continue
            if any(source.module is None for source in sources):  # rows that nothing changes: how many may be an assumption
                self.notes += self._assumed
                self._assumed.clear()
            yield target, sources

    def _places(self, tensor: Canonical, modules: Sequence[Module]) -> list[Target]:
        """Where the dialect has a canonical tensor: every row that a module changes must be in one of these."""
        targets = targets_of(tensor, self.dialect, self.adapter.family)
        covered = [span for target in targets for span in target.spans]
        for module in modules:
            for span in module.target.spans:
                if not _covers(covered, span):
                    raise self._no_rows(tensor, module, targets)
        wide = self.adapter.widens.get(tensor.name)
        return [replace(target, shape=(target.shape[0], *wide[1:])) for target in targets] if wide else targets

    def _convert(self, target: Target, sources: Sequence[Source]) -> Converted:
        exact = self._exactly(target, sources)
        if exact is not None and self.shape in (None, _kind(exact.module)):
            held = translated(exact.module, self.dialect)
            if held is not None:
                return replace(exact, module=held)
        if (self.shape or "diff") == "diff" and "diff" not in self.writing.algorithms:
            raise self._no_form(target, sources)
        full = dense(target, sources, self.base)
        return Converted(*as_lora(full, self.rule)) if self.shape == "lora" else Converted(full, "dense")

    def _exactly(self, target: Target, sources: Sequence[Source]) -> Converted | None:
        modules = _modules(sources)
        if len(modules) == 1 and all(source.module for source in sources):
            found = cut(read_module(modules[0]), [(source.start, source.start + source.rows) for source in sources], target)
            whole = found is not None and [s.start for s in sources] == [0] and target.shape == modules[0].target.shape
            return None if found is None else Converted(found, "same" if whole else "cut")
        parts: list[Part] = []
        for source in sources:
            if source.module is None:
                parts.append((None, source.rows))
                continue
            found = cut(read_module(source.module), [(source.start, source.start + source.rows)], source.module.target)
            if found is None:
                return None
            parts.append((found, source.rows))
        joined = join(parts, target)
        return None if joined is None else Converted(joined, "joined")

    def _no_form(self, target: Target, sources: Sequence[Source]) -> IncompatibleError:
        modules = _modules(sources)
        names = [name for m in modules for name in (m.algorithm, *(["dora"] if decomposes(m) else []))]
        columns = any(m.factors["dora_scale"].shape[0] == 1 for m in modules if "dora_scale" in m.factors)
        what = titles_of(names) + " with a magnitude for every column" * columns
        matrix = len(target.shape) > 1 and "lora" in self.writing.algorithms
        facts = {
            "dialect": self.dialect.name,
            "holds": titles_of(self.writing.algorithms),
            "tensor": f"{target.stored} {list(target.shape)}",
        }
        return IncompatibleError(
            "adapter.algorithm",
            f"{self.dialect.title} cannot hold what `{modules[0].name}` is: {what}",
            facts=facts,
            fix="--as lora --rank R writes the nearest LoRA" if matrix
            else f"--ignore '*.{modules[0].sources[0].rpartition('.')[2]}' leaves out all that are like it; or choose another dialect",
        )  # fmt: skip

    def _no_rows(self, tensor: Canonical, module: Module, targets: Sequence[Target]) -> IncompatibleError:
        names = [segment.name for segment in tensor.segments]
        kept = ", ".join(f"{names[t.parts[0]]} to {names[t.parts[1]]}" for t in targets if t.parts)
        return IncompatibleError(
            "adapter.no-place",
            f"{self.dialect.title} has no place for all rows of `{tensor.name}`, which `{module.name}` changes",
            facts={"dialect": self.dialect.name, "has": kept or "none of them"},
            fix="choose another dialect, or leave the module out with --ignore GLOB",
        )


def _kind(module: ModuleTensors) -> str:
    """What `shape` may ask for: a LoRA without magnitude, a difference; any other algorithm by its name."""
    return "dora" if decomposes(module) else module.algorithm


def _covers(spans: Sequence[Span], wanted: Span) -> bool:
    rest = wanted.rows - sum(
        max(min(span.start + span.rows, wanted.start + wanted.rows) - max(span.start, wanted.start), 0) for span in spans
    )
    return rest == 0


def _modules(sources: Sequence[Source]) -> list[Module]:
    """The modules that rows come from, each once."""
    return list({id(source.module): source.module for source in sources if source.module is not None}.values())


def sources_of(target: Target, modules: Sequence[Module]) -> list[Source]:
    """The rows of a target in order, each from the module that has it; neighbours of one module are one.

    Modules that have the same rows twice are an error of the file, which opening refuses.
    """
    found: list[Source] = []
    for span in target.spans:
        at, stop = span.start, span.start + span.rows
        while at < stop:
            source = _next(at, stop, modules)
            last = found[-1] if found else None
            if last and last.module is source.module and (source.module is None or last.start + last.rows == source.start):
                found[-1] = Source(last.module, last.start, last.rows + source.rows)
            else:
                found.append(source)
            at += source.rows
    return found


def _next(at: int, stop: int, modules: Sequence[Module]) -> Source:
    """As many canonical rows from `at` on as one module has, or none has."""
    spans: list[tuple[Module, Span]] = [(module, span) for module in modules for span in module.target.spans]
    for module, span in spans:
        if span.start <= at < span.start + span.rows:
            return Source(module, span.at + at - span.start, min(stop, span.start + span.rows) - at)
    following = [span.start for _, span in spans if span.start > at]
    return Source(None, 0, min([stop, *following]) - at)


def model_tensors(adapter: Adapter, base: Bound | None, notes: list[str]) -> Collection[Canonical]:
    """The tensors of the model that an adapter is for: the base's, or those of a model of the size that it tells.

    What had to be assumed is added to `notes`.
    """
    table = table_of(adapter.family)
    if base is not None:
        return base.spec.values()
    assert table is not None  # without a table an adapter cannot be opened without a base
    return table.expand(dims_of(table, adapter, notes), table.components)


def dims_of(table: Table, adapter: Adapter, notes: list[str]) -> Mapping[str, int]:
    """The model's dims as far as the adapter tells them, and what every published model has for the rest."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for layout, stored, shape in _stored(table, adapter.modules):
        shapes.setdefault(layout, {})[stored] = shape
    dims: dict[str, int] = {}
    for layout, found in shapes.items():
        for symbol, value in solve_partial(table, layout, found, adapter.checkpoint.reference).items():
            dims[symbol] = max(value, dims.get(symbol, 0))
    for symbol, (other, multiple) in _USUAL.get(table.family, {}).items():
        if not dims.get(symbol) and dims.get(other):
            dims[symbol] = multiple * dims[other]
            notes.append(f"the adapter does not tell the width {symbol}: {multiple} x {other} = {dims[symbol]}, as in published models")
    return dims


def _stored(table: Table, modules: Sequence[Module]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Layout, name and shape of what modules change; named parts of a tensor by the names that they have where they are
    tensors of their own."""
    inside = [module.target.stored for module in modules if module.target.parts is not None]
    split = {tensor.name: tensor.pieces.get("diffusers", ()) for tensor in superset(table, inside)} if inside else {}
    for target in (module.target for module in modules):
        if target.parts is None:
            yield target.layout, target.stored, target.shape
            continue
        pieces = split[target.tensor][target.parts[0] : target.parts[1] + 1]  # one of them, or q, k and v, which are alike
        for piece in pieces:
            yield "diffusers", piece.name, (target.shape[0] // len(pieces), *target.shape[1:])
