"""What a checkpoint is, from its headers alone: nothing is refused that has a header, and torch is not needed."""

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from fluxsmith.analysis.kinds import (
    FAMILY_NAMES,
    block_of,
    component_of,
    flux1_kind,
    foreign_kind,
    in_order,
    numbered_lists,
    packed_keys,
    scheme_of,
)
from fluxsmith.analysis.reading import Place, Reading, read_as
from fluxsmith.errors import FileError, FluxsmithError, IncompatibleError
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.quantised import decoded
from fluxsmith.io.references import open_reference
from fluxsmith.io.views import View
from fluxsmith.layouts import known_tables
from fluxsmith.layouts.detection import Candidate, detect, open_model

__all__ = ["Amount", "Inspection", "StoredKey", "inspect", "inspect_checkpoint"]


@dataclass(frozen=True)
class Amount:
    """Some tensors together."""

    tensors: int
    parameters: int
    nbytes: int

    @classmethod
    def of(cls, views: Iterable[View]) -> "Amount":
        found = list(views)
        return cls(len(found), sum(view.count for view in found), sum(view.nbytes for view in found))


@dataclass(frozen=True)
class StoredKey:
    """One tensor of a file; `canonical` is None where the key belongs to no model that is known here."""

    key: str
    canonical: str | None
    block: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint is. `family` and `kind` are words for programs, `what` says the same to people.

    `parameters` counts the elements of the model's own tensors (all, where no model is known), `depth` the blocks by
    list, `components` everything in the file by what it belongs to. `missing`, `unknown` and `misshapen` tell how a
    FLUX.1 file departs from a whole one, `refused` why a merge would not take it.
    """

    checkpoint: Checkpoint = field(repr=False)
    family: str
    kind: str
    what: str
    layout: str | None
    prefix: str
    depth: Mapping[str, int]
    dims: Mapping[str, int]
    quantised: str | None
    components: Mapping[str, Amount]
    places: Mapping[str, Place] = field(repr=False)
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict[str, Any])
    shard: tuple[int, int] | None = None
    refused: IncompatibleError | None = None

    @property
    def reference(self) -> str:
        return self.checkpoint.reference

    @property
    def parameters(self) -> int:
        return next(iter(self.components.values())).parameters if self.components else 0

    @property
    def guidance(self) -> bool | None:
        """Whether a FLUX.1 model embeds a guidance value; None for other files and where a shard alone does not tell."""
        found = bool(self.dims.get("guidance"))
        return found if "guidance" in self.dims and (found or self.kind != "part") else None

    @property
    def heads(self) -> int | None:
        """Attention heads of a FLUX.1 model, where the widths could be told."""
        return self.dims["H"] // self.dims["D"] if self.dims.get("H") and self.dims.get("D") else None

    @property
    def dtypes(self) -> dict[str, Amount]:
        """How tensors are stored, as element types and formats of quantised ones: the one with most bytes first."""
        views = self.checkpoint.tensors.values()
        found = {kind: Amount.of(view for view in views if view.kinds == {kind}) for kind in self.checkpoint.kinds}
        return dict(sorted(found.items(), key=lambda item: -item[1].nbytes))

    @property
    def recipe(self) -> str | None:
        """The recipe that the file carries, as YAML."""
        return self.checkpoint.metadata.get("fluxsmith.recipe")

    @property
    def made_from(self) -> list[dict[str, Any]]:
        """The inputs that the file records, with `name`, `reference` and the `files` with their hashes."""
        try:
            return json.loads(self.checkpoint.metadata.get("fluxsmith.inputs", "[]"))
        except ValueError:
            return []

    def block(self, key: str) -> str:
        """The block, the part or the component that a stored key stands in."""
        if key in self.places:
            return self.places[key].block
        other = component_of(key) if self.layout is not None else "other"
        return other if other != "other" else block_of(key)

    def blocks(self) -> dict[str, str]:
        """The block of every stored key, in the order of the model; what is no part of it comes last."""
        rest = in_order(key for key in self.checkpoint.tensors if key not in self.places)
        return {key: self.block(key) for key in (*self.places, *rest)}

    def stored_keys(self, pattern: str = "*") -> list[StoredKey]:
        """Stored keys that a glob matches, by their own or by their canonical name, in the order of the file."""
        found: list[StoredKey] = []
        others = {key: self.checkpoint.stored[key] for key in (*self.checkpoint.sides, *self.checkpoint.dropped)}
        for key, view in {**self.checkpoint.tensors, **others}.items():
            place = self.places.get(key)
            if fnmatchcase(key, pattern) or (place and fnmatchcase(place.name, pattern)):
                found.append(StoredKey(key, str(place) if place else None, self.block(key), "/".join(sorted(view.kinds)), view.shape))
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; keys are not in it."""
        return {
            "reference": self.reference, "family": self.family, "kind": self.kind, "what": self.what, "layout": self.layout,
            "prefix": self.prefix, "parameters": self.parameters, "bytes": self.checkpoint.nbytes,
            "tensors": len(self.checkpoint.stored), "dtypes": {name: vars(amount) for name, amount in self.dtypes.items()},
            "depth": dict(self.depth), "guidance": self.guidance, "heads": self.heads, "dims": dict(self.dims),
            "quantised": self.quantised, "components": {name: vars(amount) for name, amount in self.components.items()},
            "files": [{"path": file.path, "size": file.size} for file in self.checkpoint.files], "shard": self.shard,
            "missing": self.missing, "unknown": self.unknown,
            "misshapen": {key: {"found": found, "expected": expected} for key, (found, expected) in self.misshapen.items()},
            "refused": self.refused.as_dict() if self.refused else None,
            "metadata": dict(self.checkpoint.metadata), "recipe": self.recipe, "made_from": self.made_from,
            "config": self.checkpoint.config,
        }  # fmt: skip


def inspect(reference: str, *, allow_pickle: bool = False, download: bool = False) -> Inspection:
    """Inspect a file, a folder or a checkpoint on the Hub; of the latter only headers are fetched, unless `download`.

    Raises FileError where there is no readable header, HubError where the Hub does not give it.
    """
    return inspect_checkpoint(open_reference(reference, download=download, allow_pickle=allow_pickle))


def inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    """Inspect what has been opened; a quantised checkpoint by its values, where they can be had."""
    with suppress(FluxsmithError):  # _refusal tells
        checkpoint = decoded(checkpoint)
    candidate, foreign = _candidate(checkpoint), foreign_kind(checkpoint.tensors)
    if candidate is None or (foreign is not None and candidate.score < 1.0 and foreign[0] != candidate.table.family):
        return _inspect_other(checkpoint, foreign)
    scheme = scheme_of(checkpoint)
    unread = scheme is not None and checkpoint.quantised is None
    aside, packed = packed_keys(checkpoint.tensors) if unread else (set[str](), set[str]())
    reading = read_as(checkpoint, candidate, aside, packed)
    shard = _shard(checkpoint)
    kind, what = _kind(candidate, reading, shard)
    return Inspection(
        checkpoint, candidate.table.family, kind, what, candidate.layout, candidate.prefix,
        _depths(candidate, reading), reading.dims, scheme,
        _components(checkpoint, candidate, reading, aside), reading.places, reading.missing, _unknown(reading),
        reading.misshapen, shard, _refusal(checkpoint),
    )  # fmt: skip


def _depths(candidate: Candidate, reading: Reading) -> dict[str, int]:
    """How many blocks each list has, without those of components that another file has."""
    table = candidate.table
    absent = () if table.components[0] in table.prefixes else set(table.components) - set(candidate.prefixes)
    return {symbol: reading.dims[symbol] for symbol in table.depth_stems if symbol not in absent}


def _kind(candidate: Candidate, reading: Reading, shard: tuple[int, int] | None) -> tuple[str, str]:
    """The kind of a file of a known family, in a word and in words."""
    family = candidate.table.family
    name = f"{FAMILY_NAMES.get(family, family)} {' + '.join(candidate.prefixes)}"
    if shard and reading.missing:
        return "part", f"one shard of a {name} ({shard[0]} of {shard[1]})"
    kind, words = flux1_kind(reading.dims) if family == "flux1" else (family, "")
    return kind, ", ".join(filter(None, [name, words, "incomplete" if reading.missing else ""]))


def _inspect_other(checkpoint: Checkpoint, foreign: tuple[str, str] | None) -> Inspection:
    """A file that no table describes: what its keys say, and its lists of blocks."""
    refused = _refusal(checkpoint)
    mixed = refused is not None and refused.code == "model.mixed-names"
    unknown = ("flux1", "FLUX.1 under two namings at once") if mixed else ("structural", "a state dict of no family that is known here")
    model_type = str((checkpoint.config or {}).get("model_type", ""))
    if model_type and foreign is None and not mixed:
        unknown = (model_type, f"a checkpoint of transformers ({model_type})")
    family, what = foreign or unknown
    scheme = scheme_of(checkpoint)
    amounts = {family: Amount.of(checkpoint.tensors.values())}
    return Inspection(
        checkpoint, family, family, what, None, "", numbered_lists(checkpoint.tensors), {}, scheme, amounts, {},
        shard=_shard(checkpoint), refused=refused,
    )  # fmt: skip


def _candidate(checkpoint: Checkpoint) -> Candidate | None:
    tables = known_tables()
    try:
        return detect(checkpoint, tables)
    except IncompatibleError:
        return None  # two namings at once; _refusal tells


def _refusal(checkpoint: Checkpoint) -> IncompatibleError | None:
    """Why a merge would not take this checkpoint."""
    tables = known_tables()
    try:
        open_model(checkpoint, tables)
    except IncompatibleError as error:
        return error
    except FileError:  # how it is quantised is seen after the download
        return None
    return None


def _components(checkpoint: Checkpoint, candidate: Candidate, reading: Reading, aside: set[str]) -> dict[str, Amount]:
    """The component that gives the family its name first, then what else is in the file."""
    first = candidate.table.components[0]
    members: dict[str, list[View]] = {first: []}
    for key, view in checkpoint.tensors.items():
        place = reading.places.get(key)
        own = place.component if place else first if key.startswith(candidate.prefix) and candidate.prefix else component_of(key)
        name = "scales" if key in aside else own
        members.setdefault(name, []).append(view)
    for key in (*checkpoint.sides, *checkpoint.dropped):
        members.setdefault("scales", []).append(checkpoint.stored[key])
    return {name: Amount.of(views) for name, views in members.items()}


def _unknown(reading: Reading) -> tuple[str, ...]:
    """Keys under the prefix that are part of no model; those of another component are counted as such."""
    return tuple(key for key in reading.unknown if component_of(key) == "other")


def _shard(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """(number, of how many) where the checkpoint is one shard alone, by its name."""
    match = re.search(r"-(\d{5})-of-(\d{5})\.", checkpoint.files[0].path) if len(checkpoint.files) == 1 else None
    return (int(match[1]), int(match[2])) if match else None
