"""Which dialect an adapter is written in, and for which family: every reading is scored by the share of keys that it
explains, ties between readings that mean different things are refused."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fluxsmith.adapters.algorithms import ALGORITHMS
from fluxsmith.adapters.dialects import DIALECTS, MAIN, Dialect, Key
from fluxsmith.adapters.reading.harmless import harmless_names
from fluxsmith.adapters.reading.sidecars import Sidecar
from fluxsmith.adapters.targets import Place, Targets, superset
from fluxsmith.errors import FluxsmithError
from fluxsmith.hub import parse_reference
from fluxsmith.io.checkpoint import ADAPTER_CONFIG
from fluxsmith.io.opening import open_checkpoint
from fluxsmith.layouts.table import Canonical, Table

__all__ = ["Read", "Reading", "is_local_adapter", "looks_like_adapter", "readings"]

ENOUGH = 0.5
FEWEST = 4  # one key in so many is a factor in an adapter: beside it stand alphas and norms, in a model all of its tensors


@dataclass(frozen=True, slots=True)
class Read:
    """What a dialect makes of one key: a role of the module at a place, which the file calls `name`."""

    place: Place
    role: str
    name: str


@dataclass
class Reading:
    """A file read in one dialect as an adapter for one family (`table` is None for a structural model)."""

    dialect: Dialect
    table: Table | None
    keys: dict[str, Read] = field(default_factory=dict[str, Read])
    count: int = 0
    #: Keys that are of this dialect, but of another layout than most of their component: key -> layout.
    strays: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def score(self) -> float:
        """The share of the keys that it explains, of those that mean something."""
        return len(self.keys) / max(self.count, 1)

    @cached_property
    def layout(self) -> str:
        """The layout in which most of its modules are named."""
        found = [read.place.layout for read in self.keys.values()]
        return max(dict.fromkeys(found), key=found.count, default="")

    @property
    def title(self) -> str:
        """What it says of the file, in words."""
        family = self.table.family if self.table else "structural"
        return f"{self.dialect.name} for {family} ({self.layout})"


def looks_like_adapter(keys: Iterable[str]) -> bool:
    """Whether a file holds factors of adapters, told by the last parts of its keys, as some dialect understands them."""
    return bool(_factors_among(keys))


def _factors_among(keys: Iterable[str]) -> list[str]:
    words = {word for a in ALGORITHMS.values() for word in (*a.roles, *a.numbers)} - {"weight", "scale", "alpha"}
    keys = list(keys)
    found = [key for key in keys if key.endswith(tuple(f".{word}" for word in words))]
    return found or [key for key in keys if any(part and part.role in words for part in (d.parse(d, key) for d in DIALECTS.values()))]


def is_local_adapter(reference: str) -> bool:
    """Whether a reference is an adapter on this machine: a folder or file that holds its factors. False for what cannot be
    read, and for references to the Hub, which are not asked."""
    try:
        path = parse_reference(reference)
        if not isinstance(path, Path) or not path.exists():
            return False
        if (path / ADAPTER_CONFIG).is_file():
            return True
        keys = open_checkpoint(path).tensors
        return FEWEST * len(_factors_among(keys)) >= len(keys) > 0
    except (FluxsmithError, OSError):
        return False


def readings(
    keys: Iterable[str], tables: Iterable[Table], structural: Mapping[str, Canonical] | None = None, sidecar: Sidecar | None = None
) -> list[Reading]:
    """All readings of a file that explain something, best first; `structural` are the tensors of a base without a table.

    Of readings that explain as much those go first whose program the sidecar names.
    """
    keys = list(keys)
    parsed = {name: {key: parts for key in keys if (parts := dialect.parse(dialect, key))} for name, dialect in DIALECTS.items()}
    harmless = harmless_names(keys)
    found: list[Reading] = []
    for table in tables:
        targets = Targets(superset(table, keys), table.prefixes)
        found += [_read(dialect, table, targets, parsed[name]) for name, dialect in DIALECTS.items() if _may_be(dialect, table)]
    if structural is not None:
        targets = Targets(structural.values())
        found += [_read(dialect, None, targets, parsed[name]) for name, dialect in DIALECTS.items()]
    for reading in found:
        reading.count = len(keys) - sum(key not in reading.keys for key in harmless)
    order = list(DIALECTS.values())
    return sorted((r for r in found if r.keys), key=lambda r: (-len(r.keys), not r.dialect.claims(sidecar or {}), order.index(r.dialect)))


def _may_be(dialect: Dialect, table: Table) -> bool:
    return not dialect.families or table.family in dialect.families


def _read(dialect: Dialect, table: Table | None, targets: Targets, keys: Mapping[str, Key]) -> Reading:
    """Every key that the dialect explains; names of one component are taken from the one layout that has most of them."""
    reading = Reading(dialect, table)
    candidates: dict[tuple[str, str], dict[str, Read]] = {}
    main = table.components[0] if table else next(iter(targets.components), "")
    for key, parsed in keys.items():
        component = main if parsed.component == MAIN or table is None else parsed.component
        for layout in parsed.layouts or targets.layouts(component):
            stem = targets.stem(component, layout, parsed.name, joined=parsed.joined)
            if stem is None:
                continue
            place = Place(component, layout, stem, _suffix(parsed.role), parsed.parts)
            if targets.target(place) is not None:
                name = parsed.label or key.removesuffix(parsed.role).rstrip(".")
                candidates.setdefault((component, layout), {})[key] = Read(place, parsed.role, name)
    best: dict[str, dict[str, Read]] = {}
    for (component, _), found in candidates.items():
        if len(found) > len(best.get(component, {})):
            best[component] = found
    for found in best.values():
        reading.keys |= found
    for (_, layout), found in candidates.items():
        reading.strays |= {key: layout for key in found if key not in reading.keys}
    return reading


def _suffix(role: str) -> str:
    return "bias" if any(role in algorithm.biases for algorithm in ALGORITHMS.values()) else "weight"
