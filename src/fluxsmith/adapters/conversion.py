"""An adapter in another dialect, with the same delta: its modules where the other layout has its tensors.

A module's target is rows of a canonical tensor. Every target of the new layout is put together from the modules whose
rows it has: the same module, rows of one (`cutting`), several as one (`joining`), all of them exact. What has no exact form there
becomes dense (`diff`), or is an error that says how: nothing is approximated unless a rank is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fluxsmith.adapters.cutting import cut
from fluxsmith.adapters.dialects import Dialect
from fluxsmith.adapters.dialects.writing import Writing
from fluxsmith.adapters.joining import Part, join
from fluxsmith.adapters.materialising import Shape, as_lora, dense
from fluxsmith.adapters.module import Adapter, Module, Span, Target
from fluxsmith.adapters.spelling import words_of
from fluxsmith.adapters.targets import Place, Targets, solve_partial
from fluxsmith.adapters.tensors import read_module
from fluxsmith.errors import IncompatibleError
from fluxsmith.layouts import Bound, Canonical, Table, table_of

if TYPE_CHECKING:
    from fluxsmith.adapters.rank import RankRule
    from fluxsmith.adapters.tensors import ModuleTensors

__all__ = ["Conversion", "Converted", "Source", "sources_of"]

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
        self._table = table_of(self.adapter.family)
        spec = self._spec()
        self._tensors = {tensor.name: tensor for tensor in spec}
        self._targets = Targets(spec, self._table.prefixes if self._table else None)

    def _spec(self) -> Collection[Canonical]:
        """The tensors of the model: the base's, or those of a model of the size that the adapter tells."""
        if self.base is not None:
            return self.base.spec.values()
        assert self._table is not None  # without a table an adapter cannot be opened without a base
        return self._table.expand(_dims(self._table, self.adapter, self.notes), self._table.components)

    def __iter__(self) -> Iterator[Converted]:
        for name, modules in self._groups.items():
            tensor = self._tensors[name]
            for target in self._places(tensor, modules):
                sources = sources_of(target, modules)
                if any(source.module for source in sources):
                    yield self._convert(target, sources)

    def _places(self, tensor: Canonical, modules: Sequence[Module]) -> Iterable[Target]:
        """Where the dialect has a canonical tensor: one target for every stored tensor, or named part of one."""
        layout = self._layout(tensor)
        if not re.search(self.writing.only, tensor.name) or layout is None:
            raise IncompatibleError(
                "adapter.no-place",
                f"{self.dialect.title} has no place for `{tensor.name}`, which the adapter changes",
                facts={"dialect": self.dialect.name, "modules": ", ".join(module.name for module in modules)},
                fix="--ignore GLOB leaves such modules out by rule, or choose another dialect",
            )
        names = dict.fromkeys(piece.name for piece in tensor.pieces[layout])
        before = (self._table.prefixes if self._table else {}).get(tensor.component, {}).get(layout, ("",))
        for name in names:
            stem, _, suffix = name.removeprefix(next(iter(before), "")).rpartition(".")
            suffix = "weight" if suffix == "scale" else suffix
            for parts in self.writing.divide(tensor):
                target = self._targets.target(Place(tensor.component, layout, stem or suffix, suffix if stem else "weight", parts))
                assert target is not None
                yield target

    def _layout(self, tensor: Canonical) -> str | None:
        """The layout whose names the dialect has for a tensor; a text encoder has but one in most families."""
        layouts = self._table.layouts if self._table else tuple(tensor.pieces)
        wanted = layouts[0] if self.writing.layout == "original" else self.writing.layout
        if tensor.component != (self._table.components[0] if self._table else tensor.component):
            return wanted if wanted in tensor.pieces else next(iter(tensor.pieces), None)
        return wanted if wanted in tensor.pieces else None

    def _convert(self, target: Target, sources: Sequence[Source]) -> Converted:
        exact = self._exactly(target, sources)
        wanted = self.shape or (None if exact and self._can_hold(exact.module) else "diff")
        if exact is not None and (wanted is None or exact.module.algorithm == wanted):
            return exact
        if wanted == "diff" and "diff" not in self.writing.algorithms:
            if exact is not None:
                return exact  # the writer refuses it by name, with what the dialect holds
            raise self._no_form(target, sources)
        full = dense(target, sources, self.base)
        if wanted == "lora":
            return Converted(*as_lora(full, self.rule))
        return Converted(full, "dense")

    def _can_hold(self, module: ModuleTensors) -> bool:
        """Whether the dialect has words for a module."""
        return module.algorithm in self.writing.algorithms and words_of(self.dialect.vocabulary, module) is not None

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
        title = ", ".join(sorted({module.algorithm for module in modules}))
        return IncompatibleError(
            "adapter.no-exact-form",
            f"{title} at `{target.tensor}` has no exact form in {self.dialect.title}",
            facts={"modules": "\n".join(module.name for module in modules), "becomes": f"{target.stored} {list(target.shape)}"},
            fix="--as lora --rank R for the nearest LoRA, or a dialect of the adapter's own layout",
        )


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


def _dims(table: Table, adapter: Adapter, notes: list[str]) -> Mapping[str, int]:
    """The model's dims as far as the adapter tells them, and what every published model has for the rest."""
    dims: dict[str, int] = {}
    for layout in dict.fromkeys(module.target.layout for module in adapter.modules):
        shapes = {m.target.stored: m.target.shape for m in adapter.modules if m.target.layout == layout and m.target.parts is None}
        for symbol, value in solve_partial(table, layout, shapes, adapter.checkpoint.reference).items():
            dims[symbol] = max(value, dims.get(symbol, 0))
    for symbol, (other, multiple) in _USUAL.get(table.family, {}).items():
        if not dims.get(symbol) and dims.get(other):
            dims[symbol] = multiple * dims[other]
            notes.append(f"the adapter does not tell the width {symbol}: {multiple} x {other} = {dims[symbol]}, as in published models")
    return dims
