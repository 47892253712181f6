"""Which family and layout a checkpoint has: all candidates are scored by anchor keys, ties are refused.

File names and metadata are not asked (every kohya merge says flux-1-dev): keys and shapes decide.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

from fluxsmith.errors import IncompatibleError
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.quantised import decoded
from fluxsmith.layouts.binding import PREFIXES, Bound, bind, symbols_of
from fluxsmith.layouts.standalone import tables_for
from fluxsmith.layouts.structural import bind_structural, bind_transformers
from fluxsmith.layouts.table import Canonical, Table

__all__ = ["ENOUGH", "PREFIXES", "Candidate", "anchors_of", "component_alone", "detect", "open_model"]

ENOUGH = 0.5
_NUMBERED = re.compile(r"(blocks|layers|norms)\.\d+\.")

# What other files of this field are called, by keys that only they have. (name, pattern, what to do instead)
FOREIGN: tuple[tuple[str, str, str], ...] = (
    ("a FLUX ControlNet", r"(^|\.)(controlnet_|input_hint_block)", "merge ControlNets with ControlNets, as any state dict"),
    ("an IP-Adapter", r"(^|\.)ip_adapter|image_proj\.", "merge adapters with adapters"),
    ("FLUX.1 Redux", r"^redux_(up|down)\.", "merge Redux only with Redux"),
    ("chroma", r"(^|\.)distilled_guidance_layer\.", "Chroma is not FLUX.1: it has no modulation layers"),
    ("flux2", r"(^|\.)single_stream_modulation\.(lin|linear)\.weight$", "FLUX.2 merges only with FLUX.2"),
    ("an adapter (LoRA and its kin)", r"\.(lora_(A|B|down|up)(\.[^.]+)?\.weight|lokr_w[12](_[ab])?|hada_w[12]_[ab]|dora_scale)$",
     "an adapter is a delta: fluxsmith apply ADAPTER -b MODEL, or `model + 0.8*adapter`"),
    ("sdxl", r"(^|\.)conditioner\.embedders\.|label_emb\.0\.0\.weight$", "merge SDXL with SDXL"),
)  # fmt: skip

# Families whose files are told by a key even where no table fits: then merged key by key, but only with their own kind.
OTHER_MODELS = ("chroma", "flux2", "sdxl")


@dataclass(frozen=True)
class Candidate:
    """One reading of a file; `score` is the share of a table's anchors that the file has.

    `prefixes` gives every component that the file has and what stands before its keys; `prefix` is that of the first.
    """

    table: Table
    layout: str
    prefix: str
    score: float
    prefixes: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)


def detect(checkpoint: Checkpoint, tables: tuple[Table, ...]) -> Candidate | None:
    """The best reading of a checkpoint, or None where no table fits (a structural checkpoint).

    Raises IncompatibleError where two readings are equally good or keys carry different prefixes.
    """
    keys = _Keys(checkpoint.tensors)
    found = sorted(
        (candidate for table in tables for layout in table.layouts for candidate in _readings(table, layout, keys)),
        key=lambda candidate: (-candidate.score, -len(candidate.prefix)),
    )
    best = found[0] if found else None
    if best is None or best.score < ENOUGH:
        return None
    for other in found[1:]:
        if other.table is best.table and other.score >= ENOUGH:
            raise _mixed(checkpoint, best, other)
        if other.score == best.score:
            raise _ambiguous(checkpoint, best, other)
    return best


class _Keys:
    """The keys of a file, as they are and with the numbers of blocks blanked, by what stands before them."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.all = set(keys)
        self._blanked: dict[str, frozenset[str]] = {}

    def begin(self, text: str) -> bool:
        """Whether there is a key that begins with `text`."""
        return any(key.startswith(text) for key in self.all)

    def blanked(self, prefix: str) -> frozenset[str]:
        """Name templates of the keys after a prefix."""
        if prefix not in self._blanked:
            self._blanked[prefix] = frozenset(_template(key[len(prefix) :]) for key in self.all if key.startswith(prefix))
        return self._blanked[prefix]


def _readings(table: Table, layout: str, keys: _Keys) -> list[Candidate]:
    """One candidate for every prefix that the first component of a family may have, with what else there is of it."""
    first, *others = table.components
    rest = {c: prefix for c in others for prefix in table.prefixes[c][layout] if _share(table, layout, c, prefix, keys) >= ENOUGH}
    scored = _scores(table, layout, keys)
    return [Candidate(table, layout, prefix, score, {first: prefix, **(rest if prefix else {})}) for prefix, score in scored]


def _scores(table: Table, layout: str, keys: _Keys) -> list[tuple[str, float]]:
    """Prefixes that the first component may have, with the share of its anchors that are there after them."""
    first = table.components[0]
    if first in table.prefixes:
        return [(prefix, _share(table, layout, first, prefix, keys)) for prefix in table.prefixes[first][layout]]
    anchors = _anchors(table, layout)
    signed = [prefix for prefix in PREFIXES if keys.begin(prefix + table.signature)]
    return [(prefix, len(anchors & keys.blanked(prefix)) / len(anchors)) for prefix in signed]


def _share(table: Table, layout: str, component: str, prefix: str, keys: _Keys) -> float:
    """How many of a component's own keys are there, block numbers as they are: a U-Net is told by where its layers stand."""
    written = len(table.prefixes[component][layout][0])
    anchors = anchors_of(table, layout)[component]
    return sum(prefix + name[written:] in keys.all for name in anchors) / len(anchors)


def open_model(checkpoint: Checkpoint, tables: tuple[Table, ...], *, force: str | None = None, components: Collection[str] = ()) -> Bound:
    """A checkpoint bound to the layout that fits it, quantised weights as views of their values; `force="structural"`
    takes every key as it is.

    Of `components` alone (none: all) must the file be complete; the keys of the others are then extras.
    Raises IncompatibleError where the file is something that cannot be merged as a model, and says what it is.
    """
    checkpoint = decoded(checkpoint)
    if force == "structural":
        return bind_structural(checkpoint)
    candidate = detect(checkpoint, tables) or component_alone(checkpoint, components)
    foreign = _foreign(checkpoint)
    if foreign is not None and candidate is not None and foreign[0] == candidate.table.family:
        foreign = None
    if candidate is None or (foreign is not None and candidate.score < 1.0):
        if foreign is None and checkpoint.config and "model_type" in checkpoint.config:
            return bind_transformers(checkpoint, str(checkpoint.config["model_type"]))
        if foreign is None or foreign[0] in OTHER_MODELS:
            return bind_structural(checkpoint, foreign[0] if foreign else "structural")
        raise IncompatibleError(
            "model.wrong-kind",
            f"{checkpoint.reference} is {foreign[0]}, not a model",
            facts={"file": checkpoint.reference, "key": foreign[2]},
            fix=foreign[1],
        )
    prefixes = candidate.prefixes
    if components and all(name in prefixes for name in components):
        prefixes = {name: prefix for name, prefix in prefixes.items() if name in components}
    return bind(checkpoint, candidate.table, candidate.layout, prefixes)


def component_alone(checkpoint: Checkpoint, components: Collection[str] = ()) -> Candidate | None:
    """The reading of a complete text encoder or VAE that is alone in its file; None for anything else.

    One with a config.json beside it is read as what that says it is, unless it is asked for as one of `components`.
    """
    candidate = detect(checkpoint, tables_for(checkpoint, components)) if checkpoint.config is None or components else None
    if candidate is None or candidate.score < 1.0 or (checkpoint.config and candidate.table.family not in components):
        return None
    own = {name.partition(".")[0] for name in anchors_of(candidate.table, candidate.layout)[candidate.table.family]}
    optional = {row.stem.removeprefix(f"{row.component}.").partition(".")[0] for row in candidate.table.rows if row.optional}
    others = (key for key in checkpoint.tensors if key.partition(".")[0] not in own | optional)
    return candidate if all(candidate.table.why_dropped(key) for key in others) else None


def _smallest(table: Table, depth: int) -> list[Canonical]:
    """The tensors that every model of a family has, with `depth` blocks in every list and all widths 1."""
    dims = {symbol: 1 for row in table.rows for symbol in symbols_of(table, row)}
    dims |= dict.fromkeys(table.depth_stems, depth) | dict.fromkeys(table.flags, 0)
    return table.expand(dims | {counted: 0 for row in table.rows if (counted := table.counted(row))})


@cache
def _anchors(table: Table, layout: str) -> frozenset[str]:
    """Name templates, block numbers blanked, that the first component of every model of the family has in this layout."""
    own = (tensor for tensor in _smallest(table, 1) if tensor.component == table.components[0])
    return frozenset(_template(piece.name) for tensor in own for piece in tensor.pieces.get(layout, ()))


@cache
def anchors_of(table: Table, layout: str) -> Mapping[str, frozenset[str]]:
    """Per component the names that every model of the family has, of lists of blocks those of the first two."""
    found: dict[str, set[str]] = {component: set() for component in table.components}
    for tensor in _smallest(table, 2):
        found[tensor.component] |= {piece.name for piece in tensor.pieces.get(layout, ())}
    return {component: frozenset(names) for component, names in found.items()}


def _template(name: str) -> str:
    return _NUMBERED.sub(r"\1.#.", name)


def _foreign(checkpoint: Checkpoint) -> tuple[str, str, str] | None:
    for name, pattern, advice in FOREIGN:
        match = next((key for key in checkpoint.tensors if re.search(pattern, key)), None)
        if match:
            return name, advice, match
    return None


def _named(c: Candidate) -> str:
    return f"{c.table.family} {c.layout} with prefix `{c.prefix}` (score {c.score:.2f})"


def _ambiguous(checkpoint: Checkpoint, best: Candidate, rival: Candidate) -> IncompatibleError:
    return IncompatibleError(
        "model.ambiguous-family",
        f"{checkpoint.reference} fits two families equally well",
        facts={"one": _named(best), "other": _named(rival)},
        fix="take one of the two tables away; fluxsmith layout families shows them",
    )


def _mixed(checkpoint: Checkpoint, best: Candidate, rival: Candidate) -> IncompatibleError:
    return IncompatibleError(
        "model.mixed-names",
        f"{checkpoint.reference} mixes two namings of one model",
        facts={"one": _named(best), "other": _named(rival)},
        fix="use a file whose keys are all of one kind",
    )
