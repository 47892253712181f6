"""Opening an adapter: keys to modules with their targets, every key accounted for."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from fluxsmith.adapters.algorithms import ALGORITHMS
from fluxsmith.adapters.detection import ENOUGH, Read, Reading, readings
from fluxsmith.adapters.dialects import Draft
from fluxsmith.adapters.module import Adapter, Module, Target
from fluxsmith.adapters.targets import Place, Targets, solve_partial, superset
from fluxsmith.errors import IncompatibleError
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.numbers import read_number
from fluxsmith.io.views import View
from fluxsmith.layouts import Bound, known_tables, table_of

__all__ = ["open_adapter"]

SHOWN = 10


def open_adapter(
    checkpoint: Checkpoint, *, base: Bound | None = None, components: Collection[str] = (), ignore: Sequence[str] = ()
) -> Adapter:
    """The modules of an adapter; only headers and small numbers are read.

    `base` is the model that it is for; without one the family and its widths are told by the adapter itself.
    `components` limits it to some by rule (none: all of which the base has must be used), `ignore` are globs of keys
    that are left out by rule.
    Raises IncompatibleError where a key has no meaning, a shape does not fit, or a number cannot be.
    """
    ignored = {key: f"ignore: {glob}" for key in checkpoint.tensors for glob in ignore if fnmatchcase(key, glob)}
    keys = [key for key in checkpoint.tensors if key not in ignored]
    table = table_of(base.family) if base is not None else None
    tables = (table,) if table else () if base is not None else known_tables()
    found = readings(keys, tables, base.spec if base is not None and table is None else None)
    reading = _choose(checkpoint, found, base)
    return _Opener(checkpoint, reading, base, tuple(components), ignored, found).open()


def _choose(checkpoint: Checkpoint, found: Sequence[Reading], base: Bound | None) -> Reading:
    best = found[0] if found else None
    if best is None or best.score < ENOUGH:
        others = [r for r in readings(list(checkpoint.tensors), known_tables()) if r.score >= ENOUGH] if base is not None else []
        if base is not None and others:
            raise IncompatibleError(
                "adapter.wrong-family",
                f"{checkpoint.reference} is an adapter for {others[0].table.family if others[0].table else 'another model'},"
                f" the base is {base.family}",
                facts={"adapter": others[0].title, "base": base.checkpoint.reference},
                fix="use an adapter that was trained on this family",
            )
        first = next(iter(checkpoint.tensors), "none")
        raise IncompatibleError(
            "adapter.unknown-dialect",
            f"{checkpoint.reference} is no adapter that can be read" + (f" for {base.family}" if base else ""),
            facts={"file": checkpoint.reference, "first key": first, "best": f"{best.title}, {best.score:.2f}" if best else "no reading"},
            fix="fluxsmith list dialects shows what is read; fluxsmith inspect FILE shows what the file holds",
        )
    for other in found[1:]:
        if other.table is best.table and len(other.keys) == len(best.keys) and other.keys != best.keys:
            raise IncompatibleError(
                "adapter.ambiguous-dialect",
                f"{checkpoint.reference} can be read in two ways that mean different things",
                facts={"one": f"{best.title}, {best.score:.2f}", "other": f"{other.title}, {other.score:.2f}"},
                fix="rename its keys to those of one dialect",
            )
    return best


@dataclass
class _Opener:
    checkpoint: Checkpoint
    reading: Reading
    base: Bound | None
    components: tuple[str, ...]
    ignored: Mapping[str, str]
    found: Sequence[Reading]

    def open(self) -> Adapter:
        """The adapter; see open_adapter."""
        drafts = self._drafts()
        reading, checkpoint = self.reading, self.checkpoint
        targets = self._targets(drafts)
        modules: list[Module] = []
        dropped = dict(self.ignored)
        homeless: dict[str, str] = {key: "" for key in checkpoint.tensors if key not in reading.keys and key not in dropped}
        for place, (draft, members) in drafts.items():
            sources = tuple(members)
            if self.components and place.component not in self.components:
                dropped |= dict.fromkeys(sources, f"components: [{', '.join(self.components)}]")
                continue
            target = targets.target(place)
            if target is None:
                homeless |= dict.fromkeys(sources, place.component)
                continue
            modules.append(self._module(draft, members, target))
        if homeless:
            raise self._unmatched(homeless)
        if not modules:
            raise IncompatibleError(
                "adapter.changes-nothing", f"{checkpoint.reference} changes no tensor", facts={"file": checkpoint.reference},
                fix="leave it out, or name other components",
            )  # fmt: skip
        family = reading.table.family if reading.table else self.base.family if self.base else "structural"
        rivals = {other.title: round(other.score, 4) for other in self.found[:5] if other is not reading}
        return Adapter(checkpoint, reading.dialect.name, family, reading.score, tuple(modules), dropped, (), rivals, {})

    def _drafts(self) -> dict[Place, tuple[Draft, dict[str, Read]]]:
        """The modules before their numbers are understood, with their keys; biases after their weights."""
        groups: dict[Place, dict[str, Read]] = {}
        for key, read in self.reading.keys.items():
            groups.setdefault(read.place, {})[key] = read
        drafts: dict[Place, tuple[Draft, dict[str, Read]]] = {}
        for place in sorted(groups, key=lambda place: place.suffix == "bias"):
            partner = drafts.get(Place(place.component, place.layout, place.stem, "weight", place.parts))
            drafts[place] = (self._draft(groups[place], place.suffix == "bias", partner[0] if partner else None), groups[place])
        return drafts

    def _draft(self, members: Mapping[str, Read], bias: bool, partner: Draft | None) -> Draft:
        roles = {read.role for read in members.values()}
        name = next(iter(members.values())).name
        fitting = [a for a in ALGORITHMS.values() if roles <= {*(a.biases if bias else a.roles), *a.numbers}]
        if not fitting:
            raise IncompatibleError(
                "adapter.unknown-module",
                f"the factors of `{name}` belong to no one algorithm",
                facts={"file": self.checkpoint.reference, "key": "\n".join(members), "found": ", ".join(sorted(roles))},
                fix="use the complete file, as its trainer wrote it",
            )
        algorithm = fitting[0]
        stored = algorithm.biases if bias else algorithm.roles
        shapes = {stored[r.role]: self.checkpoint.tensors[key].shape for key, r in members.items() if r.role in stored}
        numbers = {algorithm.numbers[r.role]: self._number(key) for key, r in members.items() if r.role not in stored}
        return Draft(name, algorithm.name, shapes, numbers, partner)

    def _number(self, key: str) -> float:
        value = read_number(self.checkpoint.tensors[key])
        if value is None:
            raise IncompatibleError(
                "adapter.bad-number",
                f"`{key}` of {self.checkpoint.reference} is not one number",
                facts={"file": self.checkpoint.reference, "key": key, "found": list(self.checkpoint.tensors[key].shape)},
                fix="use the file as its trainer wrote it",
            )
        return value

    def _targets(self, drafts: Mapping[Place, tuple[Draft, Mapping[str, Read]]]) -> Targets:
        """The tensors of the base, or of a model of the size that the adapter was trained on."""
        if self.base is not None:
            table = table_of(self.base.family)
            return Targets(self.base.spec.values(), table.prefixes if table else None)
        table = self.reading.table
        assert table is not None
        names = Targets(superset(table, self.reading.keys), table.prefixes)
        shapes: dict[str, tuple[int, ...]] = {}
        for place, (draft, _) in drafts.items():
            target = names.target(place)
            shape = self._shape(draft)
            if target is not None and place.parts is None and None not in shape:
                shapes[target.stored] = tuple(side for side in shape if side is not None)
        dims = solve_partial(table, self.reading.layout, shapes, self.checkpoint.reference)
        return Targets(table.expand(dims, table.components), table.prefixes)

    def _shape(self, draft: Draft) -> tuple[int | None, ...]:
        algorithm = ALGORITHMS[draft.algorithm]
        try:
            return algorithm.shape(draft.shapes)
        except (ValueError, KeyError, IndexError) as error:
            missing = isinstance(error, KeyError)
            what = f"lacks its factor {error}" if missing else f"has factors that do not go together: {error}"
            raise IncompatibleError(
                "adapter.half-module" if missing else "adapter.rank-mismatch",
                f"`{draft.name}` of {self.checkpoint.reference} {what}",
                facts={"file": self.checkpoint.reference, "found": _shown_shapes(draft.shapes), "algorithm": algorithm.title},
                fix="use the complete file, as its trainer wrote it",
            ) from None

    def _module(self, draft: Draft, members: Mapping[str, Read], target: Target) -> Module:
        algorithm = ALGORITHMS[draft.algorithm]
        self._check_shape(draft, target)
        stored = algorithm.biases if target.stored.endswith("bias") else algorithm.roles
        factors: dict[str, View] = {stored[r.role]: self.checkpoint.tensors[key] for key, r in members.items() if r.role in stored}
        return Module(draft.name, algorithm.name, factors, self._settings(draft), target, tuple(members))

    def _check_shape(self, draft: Draft, target: Target) -> None:
        shape = self._shape(draft)
        flat = len(shape) == 2 and all(side == 1 for side in target.shape[2:])  # a 1x1 convolution as a matrix
        wanted = target.shape[:2] if flat else target.shape
        fits = len(shape) == len(wanted) and all(a is None or a == b for a, b in zip(shape, wanted, strict=True))
        if not fits and not (len(shape) > 2 and all(side == 1 for side in shape[2:]) and shape[:2] == target.shape):
            raise IncompatibleError(
                "adapter.wrong-width",
                f"`{draft.name}` of {self.checkpoint.reference} does not fit the model's `{target.stored}`",
                facts={
                    "file": self.checkpoint.reference, "expected": list(target.shape),
                    "found": f"{['?' if side is None else side for side in shape]} from {_shown_shapes(draft.shapes)}",
                },
                fix="use an adapter that was trained on a model of this size and kind",
            )  # fmt: skip

    def _settings(self, draft: Draft) -> Mapping[str, float]:
        try:
            settings = self.reading.dialect.settings(draft, self._sidecar)
            if not all(math.isfinite(value) for value in settings.values()):
                raise ValueError(", ".join(f"{name} {value}" for name, value in {**draft.numbers, **settings}.items()))
        except ValueError as error:
            raise IncompatibleError(
                "adapter.not-finite",
                f"`{draft.name}` of {self.checkpoint.reference} has a scale that is no finite number: {error}",
                facts={"file": self.checkpoint.reference, "expected": "a finite alpha", "found": str(error)},
                fix="set its alpha to the rank, or train it again",
            ) from None
        return settings

    @property
    def _sidecar(self) -> Mapping[str, Any]:
        return {}

    def _unmatched(self, homeless: Mapping[str, str]) -> IncompatibleError:
        counts = {name: list(homeless.values()).count(name) for name in dict.fromkeys(homeless.values())}
        first = next(iter(homeless))
        named = ", ".join(f"{count} {name or 'of no component'}" for name, count in counts.items())
        rival = f"; next best {self.found[1].title} {self.found[1].score:.2f}" if len(self.found) > 1 else ""
        base = self.base.family if self.base else "any model"
        kept = ", ".join(self.base.components) if self.base else "transformer"
        strangers = "" in counts
        return IncompatibleError(
            "adapter.unmatched-keys",
            f"{len(homeless)} of {len(self.checkpoint.tensors)} keys of {self.checkpoint.reference} fit no tensor of {base}",
            facts={
                "dialect": f"{self.reading.title} (score {self.reading.score:.2f}{rival})",
                "first": f"{first}" + (f"  (+{len(homeless) - 1}, {named})" if len(homeless) > 1 else f"  ({named})"),
                "why": "no dialect knows these keys" if strangers else f"the base has {kept} only",
            },
            fix="add `ignore: [GLOB]` to the adapter to drop them by rule" if strangers
            else f"add `components: [{kept}]` to the adapter to drop them by rule, or give a model that has them",
        )  # fmt: skip


def _shown_shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{role} {list(shape)}" for role, shape in shapes.items())
