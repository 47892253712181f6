"""Opening an adapter: keys to modules with their targets, every key accounted for."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from fluxsmith.adapters.algorithms import ALGORITHMS, find_algorithm
from fluxsmith.adapters.dialects import Draft
from fluxsmith.adapters.module import Adapter, Module, Target
from fluxsmith.adapters.reading import refusals
from fluxsmith.adapters.reading.detection import ENOUGH, Read, Reading, looks_like_adapter, readings
from fluxsmith.adapters.reading.harmless import harmless_names, zero_modules
from fluxsmith.adapters.reading.sidecars import Sidecar, SidecarError, read_sidecar
from fluxsmith.adapters.targets import Place, Targets, solve_partial, superset
from fluxsmith.errors import IncompatibleError
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.numbers import read_number
from fluxsmith.io.views import View
from fluxsmith.layouts import Bound, known_tables, table_of
from fluxsmith.layouts.detection import detect
from fluxsmith.layouts.standalone import COMPONENT_TABLES, adopted

__all__ = ["idle_globs", "open_adapter"]

Members = dict[str, Read]


def open_adapter(
    checkpoint: Checkpoint,
    *,
    base: Bound | None = None,
    components: Collection[str] = (),
    ignore: Sequence[str] = (),
    alpha: float | None = None,
) -> Adapter:
    """The modules of an adapter; only headers and small numbers are read (and the values of modules that have no home).

    `base` is the model that it is for; without one the family and its widths are told by the adapter itself.
    `components` limits it to some by rule (none: all of which the base has must be used), `ignore` are globs of keys
    that are left out by rule. `alpha` is that of modules for which neither the file nor what is beside it says one.
    Raises IncompatibleError where a key has no meaning, a shape does not fit, or a number cannot be.
    """
    ignored = {key: f"ignore: {glob}" for key in checkpoint.tensors for glob in ignore if fnmatchcase(key, glob)}
    keys = [key for key in checkpoint.tensors if key not in ignored]
    if ignored and not keys:
        raise refusals.changes_nothing(checkpoint.reference, ignored)
    if not looks_like_adapter(keys):
        model = detect(checkpoint, known_tables())
        if model is not None:
            raise refusals.is_model(checkpoint.reference, model.table.family)
        raise refusals.unknown_dialect(checkpoint.reference, keys, base, None)
    table = table_of(base.family) if base is not None else None
    alone = base is not None and base.family in COMPONENT_TABLES
    tables = (table,) if table else () if base is not None else known_tables()
    if base is not None and alone:  # an adapter is of a whole model, of which the base is one component
        tables = tuple(whole for whole in known_tables() if base.family in whole.components)
    sidecar = read_sidecar(checkpoint)
    found = readings(keys, tables, base.spec if base is not None and table is None else None, sidecar)
    best = _choose(checkpoint, keys, found, base)
    # Without a base the names of one block fit several families: the first is meant that the shapes fit, too.
    alike = [other for other in found if other.dialect is best.dialect and len(other.keys) == len(best.keys)]
    homes = [adopted(base, reading.table) or base if base is not None and alone and reading.table else base for reading in alike]
    openers = [
        _Opener(checkpoint, reading, home, tuple(components), ignored, found, sidecar, alpha)
        for reading, home in zip(alike, homes, strict=True)
    ]
    return _first_to_open(openers)


def idle_globs(files: Iterable[tuple[Checkpoint, Sequence[str]]]) -> list[str]:
    """Globs of `ignore` that match no key of any file for which they are given."""
    files = list(files)
    globs = dict.fromkeys(glob for _, ignore in files for glob in ignore)
    return [
        glob for glob in globs
        if not any(fnmatchcase(key, glob) for checkpoint, ignore in files if glob in ignore for key in checkpoint.tensors)
    ]  # fmt: skip


def _first_to_open(openers: "Sequence[_Opener]") -> Adapter:
    refused: IncompatibleError | None = None
    for opener in openers:
        try:
            return opener.open()
        except IncompatibleError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _choose(checkpoint: Checkpoint, keys: Sequence[str], found: Sequence[Reading], base: Bound | None) -> Reading:
    """The reading that explains most; see the refusals for what is none."""
    file = checkpoint.reference
    best = found[0] if found else None
    if base is not None and (best is None or best.score < 1):
        others = [r for r in readings(keys, known_tables()) if r.score >= ENOUGH and (best is None or len(r.keys) > len(best.keys))]
        if others:
            raise refusals.wrong_family(file, base, [r for r in others if len(r.keys) == len(others[0].keys)])
    if best is not None and best.score < ENOUGH:
        _check_mixture(file, keys, best, found)
    if best is None or best.score < ENOUGH:
        raise refusals.unknown_dialect(file, keys, base, best)
    for other in found[1:]:
        if other.table is best.table and other.keys.keys() == best.keys.keys() and not _same_meaning(best, other):
            raise refusals.ambiguous(file, best, other)
    return best


def _same_meaning(one: Reading, other: Reading) -> bool:
    return all((read.place, read.role) == (other.keys[key].place, other.keys[key].role) for key, read in one.keys.items())


def _check_mixture(file: str, keys: Collection[str], best: Reading, found: Sequence[Reading]) -> None:
    """Nothing that the best reading leaves over may be explained by another, nor by itself in another layout."""
    if any(key in best.strays for key in keys):
        raise refusals.mixed_layouts(file, best)
    for other in found:
        if other.table is best.table and any(key in other.keys and key not in best.keys for key in keys):
            raise refusals.mixed_dialects(file, best, other)


@dataclass
class _Opener:
    checkpoint: Checkpoint
    reading: Reading
    base: Bound | None
    components: tuple[str, ...]
    ignored: Mapping[str, str]
    found: Sequence[Reading]
    sidecar: Sidecar
    alpha: float | None
    widens: dict[str, tuple[int, ...]] = field(default_factory=dict[str, "tuple[int, ...]"])
    alpha_used: bool = False

    def open(self) -> Adapter:
        """The adapter; see open_adapter."""
        drafts = self._drafts()
        targets = self._targets(drafts)
        modules: list[Module] = []
        dropped = dict(self.ignored)
        homeless: dict[str, str] = {key: "" for key in self.checkpoint.tensors if key not in self.reading.keys and key not in dropped}
        self._check_components()
        for place, (draft, members) in drafts.items():
            if self.components and place.component not in self.components:
                dropped |= dict.fromkeys(members, f"components: [{', '.join(self.components)}]")
                continue
            target = targets.target(place)
            if target is None:
                homeless |= dict.fromkeys(members, place.component)
                continue
            modules.append(self._module(draft, members, self._widened(draft, target)))
            bias = targets.target(replace(place, suffix="bias")) if place.suffix == "weight" else None
            if bias is not None and _turns_bias(modules[-1]):
                # Its keys are the weight's, which are named once.
                modules.append(replace(modules[-1], target=bias, sources=()))
        dropped |= self._harmless(homeless)
        unmatched = {key: component for key, component in homeless.items() if key not in dropped}
        if unmatched:
            _check_mixture(self._file, unmatched, self.reading, self.found)
            raise refusals.unmatched(self._file, len(self.checkpoint.tensors), unmatched, self.reading, self.found, self.base)
        if not modules:
            raise refusals.changes_nothing(self._file, dropped)
        reading = self.reading
        family = reading.table.family if reading.table else self.base.family if self.base else "structural"
        rivals = {other.title: round(other.score, 4) for other in self.found[:5] if other is not reading}
        notes = (*_counted(reason for key, reason in dropped.items() if key in homeless), *self._notices(modules))
        return Adapter(
            self.checkpoint, reading.dialect.name, family, reading.score, tuple(modules), dropped, notes, rivals, self.sidecar, self.widens
        )  # fmt: skip

    def _check_components(self) -> None:
        """Those that are named must be some of the family's, whether this file has them or not."""
        known = dict.fromkeys(self.reading.table.components if self.reading.table else ())
        known |= dict.fromkeys(
            (*(self.base.components if self.base else ()), *(read.place.component for read in self.reading.keys.values()))
        )
        unknown = [name for name in self.components if name not in known]
        if unknown:
            raise refusals.unknown_component(self._file, unknown[0], list(known))

    @property
    def _file(self) -> str:
        return self.checkpoint.reference

    def _harmless(self, homeless: Mapping[str, str]) -> dict[str, str]:
        """Keys without a home that mean nothing, by name or as they are all zero, with the reason."""
        strangers = [key for key, component in homeless.items() if not component]
        named = harmless_names(strangers)
        return named | zero_modules(self.checkpoint.tensors, [key for key in homeless if key not in named])

    def _notices(self, modules: Sequence[Module]) -> list[str]:
        remark = self.reading.dialect.remark(modules, self.sidecar)
        names: dict[str, list[str]] = {}
        if self.alpha is not None and not self.alpha_used:
            names[f"alpha {self.alpha:g} is not used, as the file says its own"] = [modules[0].name]
        for module in modules:
            for text in filter(None, (self.reading.dialect.notice(module), _rank_note(module))):
                names.setdefault(text, []).append(module.name)
        return [remark] * bool(remark) + [
            f"{text}: {found[0]}" + (f" (+{len(found) - 1})" if len(found) > 1 else "") for text, found in names.items()
        ]

    def _drafts(self) -> dict[Place, tuple[Draft, Members]]:
        """The modules before their numbers are understood, with their keys; biases after their weights."""
        groups: dict[Place, Members] = {}
        for key, read in self.reading.keys.items():
            groups.setdefault(read.place, {})[key] = read
        self._share_numbers(groups)
        drafts: dict[Place, tuple[Draft, Members]] = {}
        for place in sorted(groups, key=lambda place: place.suffix == "bias"):
            partner = drafts.get(replace(place, suffix="weight"))
            drafts[place] = (self._draft(groups[place], place.suffix == "bias", partner[0] if partner else None), groups[place])
        return drafts

    def _share_numbers(self, groups: dict[Place, Members]) -> None:
        """Numbers of a whole module belong to each of its parts where it has no factors, to its bias where that is all."""
        numbers = {number for algorithm in ALGORITHMS.values() for number in algorithm.numbers}
        for place in list(groups):
            members = groups[place]
            if place.parts is not None or any(read.role not in numbers for read in members.values()):
                continue
            heirs = [p for p in groups if p is not place and replace(p, parts=None, suffix="weight") == place]
            for heir in heirs:
                groups[heir] |= members
            if heirs:
                del groups[place]

    def _draft(self, members: Members, bias: bool, partner: Draft | None) -> Draft:
        roles = {read.role for read in members.values()}
        name = next(iter(members.values())).name
        algorithm = find_algorithm({read.role: self.checkpoint.tensors[key].shape for key, read in members.items()}, bias=bias)
        if algorithm is None:
            raise refusals.unknown_module(self._file, name, list(members), roles)
        stored = algorithm.biases if bias else algorithm.roles
        meant = Counter({**stored, **algorithm.numbers}[read.role] for read in members.values())
        if max(meant.values()) > 1:
            raise refusals.duplicate_key(self._file, name, list(members))
        shapes = {stored[r.role]: self.checkpoint.tensors[key].shape for key, r in members.items() if r.role in stored}
        numbers = {algorithm.numbers[r.role]: self._number(key) for key, r in members.items() if r.role not in stored}
        if self.alpha is not None and algorithm.rank(shapes) and "alpha" not in numbers:
            numbers["alpha"], self.alpha_used = self.alpha, True
        return Draft(name, algorithm.name, shapes, numbers, partner)

    def _number(self, key: str) -> float:
        value = read_number(self.checkpoint.tensors[key])
        if value is None:
            raise refusals.bad_number(self._file, key, self.checkpoint.tensors[key].shape)
        return value

    def _targets(self, drafts: Mapping[Place, tuple[Draft, Members]]) -> Targets:
        """The tensors of the base, or of a model of the size that the adapter was trained on."""
        if self.base is not None:
            table = table_of(self.base.family)
            return Targets(self.base.spec.values(), table.prefixes if table else None)
        table = self.reading.table
        assert table is not None
        names = Targets(superset(table, self.reading.keys), table.prefixes)
        dims: dict[str, int] = {}
        for layout, shapes in self._stored_shapes(drafts, names).items():
            solved = solve_partial(table, layout, shapes, self._file)
            dims |= {symbol: max(value, dims.get(symbol, 0)) for symbol, value in solved.items()}
        if not dims:
            raise refusals.needs_base(self._file, self.reading)
        return Targets(table.expand(dims, table.components), table.prefixes)

    def _stored_shapes(self, drafts: Mapping[Place, tuple[Draft, Members]], names: Targets) -> dict[str, dict[str, tuple[int, ...]]]:
        """Layout -> stored name -> shape of every tensor whose whole shape the modules tell, be it in parts."""
        shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        parts: dict[Place, dict[tuple[int, int], tuple[int, ...]]] = {}
        for place, (draft, _) in drafts.items():
            target, shape = names.target(place), self._shape(draft)
            if target is None or None in shape:
                continue
            known = tuple(side for side in shape if side is not None)
            if place.parts is None:
                shapes.setdefault(place.layout, {})[target.stored] = known
            else:
                parts.setdefault(replace(place, parts=None), {})[place.parts] = known
        for place, found in parts.items():
            target = names.target(place)
            covered = sum(last + 1 - first for first, last in found)
            if target is not None and covered == target.shape[0]:  # in `names` every part has one row
                first = next(iter(found.values()))
                shapes.setdefault(place.layout, {})[target.stored] = (sum(shape[0] for shape in found.values()), *first[1:])
        return shapes

    def _shape(self, draft: Draft) -> tuple[int | None, ...]:
        algorithm = ALGORITHMS[draft.algorithm]
        try:
            return algorithm.shape(draft.shapes)
        except (ValueError, KeyError, IndexError) as error:
            raise refusals.unfit_factors(self._file, draft, algorithm, error) from None

    def _module(self, draft: Draft, members: Members, target: Target) -> Module:
        algorithm = ALGORITHMS[draft.algorithm]
        self._check_shape(draft, target)
        stored = algorithm.biases if target.stored.endswith("bias") else algorithm.roles
        factors: dict[str, View] = {stored[r.role]: self.checkpoint.tensors[key] for key, r in members.items() if r.role in stored}
        settings = self._settings(draft)
        if not algorithm.suits(draft.shapes, settings, target.shape):
            raise refusals.wrong_width(self._file, draft, target, self._shape(draft))
        return Module(draft.name, algorithm.name, factors, settings, target, tuple(members))

    def _widened(self, draft: Draft, target: Target) -> Target:
        """The target with the columns that the adapter has beyond the base's, where its dialect allows them."""
        shape = self._shape(draft)
        may = target.tensor.rpartition(".")[0] in self.reading.dialect.widens and len(shape) == len(target.shape) == 2
        if not may or shape[0] != target.shape[0] or shape[1] is None or shape[1] <= target.shape[1]:
            return target
        wide = (target.shape[0], shape[1])
        self.widens[target.tensor] = wide
        return replace(target, shape=wide)

    def _check_shape(self, draft: Draft, target: Target) -> None:
        shape = self._shape(draft)
        flat = len(shape) == 2 and len(target.shape) > 2  # a convolution as a matrix
        wanted = (*target.shape[:1], math.prod(target.shape[1:])) if flat else target.shape
        fits = len(shape) == len(wanted) and all(a is None or a == b for a, b in zip(shape, wanted, strict=True))
        if not fits and not (len(shape) > 2 and all(side == 1 for side in shape[2:]) and shape[:2] == target.shape):
            raise refusals.wrong_width(self._file, draft, target, shape)

    def _settings(self, draft: Draft) -> Mapping[str, float]:
        try:
            settings = self.reading.dialect.settings(draft, self.sidecar)
            if not all(math.isfinite(value) for value in settings.values()):
                raise ValueError(", ".join(f"{name} {value}" for name, value in {**draft.numbers, **settings}.items()))
        except SidecarError as error:
            raise error.of(self._file, draft.name) from None
        except ValueError as error:
            raise refusals.not_finite(self._file, draft, error) from None
        return settings


def _turns_bias(module: Module) -> bool:
    return ALGORITHMS[module.algorithm].turns_bias(module.shapes, module.settings)


def _rank_note(module: Module) -> str:
    """A note where a product's rank is more than its matrix can have."""
    rank = ALGORITHMS[module.algorithm].rank(module.shapes)
    shape = module.target.shape
    if module.algorithm != "lora" or rank is None or len(shape) < 2 or rank <= min(shape[0], math.prod(shape[1:])):
        return ""
    return "its rank is more than the matrix can have, so a smaller file would say the same"


def _counted(reasons: "Collection[str] | Any") -> list[str]:
    """Reasons why keys were left out, with how many: for those that no rule of the user asked for."""
    return [f"{count} keys left out: {reason}" for reason, count in Counter(reasons).items()]
