"""Which family and layout a checkpoint has: all candidates are scored by anchor keys, ties are refused.

File names and metadata are not asked (every kohya merge says flux-1-dev): keys and shapes decide.
"""

import re
from dataclasses import dataclass

from fluxsmith.errors import IncompatibleError
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.layouts.binding import PREFIXES, Bound, bind
from fluxsmith.layouts.structural import bind_structural
from fluxsmith.layouts.table import Table

__all__ = ["PREFIXES", "Candidate", "detect", "open_model", "refuse_quantised"]

ENOUGH = 0.5

# What other files of this field are called, by keys that only they have. (name, pattern, what to do instead)
FOREIGN: tuple[tuple[str, str, str], ...] = (
    ("a FLUX ControlNet", r"(^|\.)(controlnet_|input_hint_block)", "merge ControlNets with ControlNets, as any state dict"),
    ("an IP-Adapter", r"(^|\.)ip_adapter|image_proj\.", "merge adapters with adapters"),
    ("FLUX.1 Redux", r"^redux_(up|down)\.", "merge Redux only with Redux"),
    ("Chroma", r"(^|\.)distilled_guidance_layer\.", "Chroma is not FLUX.1: it has no modulation layers"),
    ("FLUX.2", r"(^|\.)single_stream_modulation\.(lin|linear)\.weight$", "FLUX.2 merges only with FLUX.2"),
    ("an adapter (LoRA and its kin)", r"\.(lora_(A|B|down|up)(\.[^.]+)?\.weight|lokr_w[12](_[ab])?|hada_w[12]_[ab]|dora_scale)$",
     "an adapter is a delta, not a model"),
    ("SDXL", r"(^|\.)conditioner\.embedders\.|label_emb\.0\.0\.weight$", "merge SDXL with SDXL"),
)  # fmt: skip

# Models without a table yet: merged key by key, but only with their own kind.
OTHER_MODELS = ("Chroma", "FLUX.2", "SDXL")

# Schemes whose numbers mean nothing without their scales. (name, pattern)
QUANTISED: tuple[tuple[str, str], ...] = (
    ("scaled fp8 (ComfyUI)", r"(^|\.)scaled_fp8$|\.scale_weight$|\.weight_scale(_2)?$|\.comfy_quant$"),
    ("bitsandbytes 4-bit", r"\.quant_state\.bitsandbytes__|\.weight\.absmax$"),
    ("bitsandbytes int8", r"\.SCB$"),
    ("quanto", r"\.weight\._data$"),
    ("nunchaku", r"\.(qweight|wscales)$"),
)


@dataclass(frozen=True)
class Candidate:
    """One reading of a file; `score` is the share of a table's anchors that the file has."""

    table: Table
    layout: str
    prefix: str
    score: float


def detect(checkpoint: Checkpoint, tables: tuple[Table, ...]) -> Candidate | None:
    """The best reading of a checkpoint, or None where no table fits (a structural checkpoint).

    Raises IncompatibleError where two readings are equally good or keys carry different prefixes.
    """
    keys = list(checkpoint.tensors)
    found = sorted(
        (
            Candidate(table, layout, prefix, _score(anchors, prefix, keys))
            for table in tables
            for layout, anchors in ((layout, _anchors(table, layout)) for layout in table.layouts)
            for prefix in PREFIXES
        ),
        key=lambda candidate: (-candidate.score, -len(candidate.prefix)),
    )
    best = found[0]
    if best.score < ENOUGH:
        return None
    rivals = [c for c in found[1:] if c.score >= ENOUGH and (c.table, c.layout, c.prefix) != (best.table, best.layout, best.prefix)]
    if rivals:
        raise _mixed(checkpoint, best, rivals[0])
    return best


def open_model(checkpoint: Checkpoint, tables: tuple[Table, ...], *, force: str | None = None) -> Bound:
    """A checkpoint bound to the layout that fits it; `force="structural"` takes every key as it is.

    Raises IncompatibleError where the file is something that cannot be merged as a model, and says what it is.
    """
    refuse_quantised(checkpoint)
    if force == "structural":
        return bind_structural(checkpoint)
    candidate = detect(checkpoint, tables)
    foreign = _foreign(checkpoint)
    if candidate is None or (foreign is not None and candidate.score < 1.0):
        if foreign is None or foreign[0] in OTHER_MODELS:
            return bind_structural(checkpoint, foreign[0] if foreign else "structural")
        raise IncompatibleError(
            "model.wrong-kind",
            f"{checkpoint.reference} is {foreign[0]}, not a model",
            facts={"file": checkpoint.reference, "key": foreign[2]},
            fix=foreign[1],
        )
    return bind(checkpoint, candidate.table, candidate.layout, candidate.prefix)


def _score(anchors: frozenset[str], prefix: str, keys: list[str]) -> float:
    hits = {_template(key[len(prefix) :]) for key in keys if key.startswith(prefix)}
    return len(anchors & hits) / len(anchors)


def _anchors(table: Table, layout: str) -> frozenset[str]:
    """Name templates, block numbers blanked, that every model of the family has in this layout."""
    dims = {symbol: 1 for row in table.rows for symbol in (*row.rows, *(row.cols or ()))}
    dims |= dict.fromkeys(table.depth_stems, 1) | dict.fromkeys(table.flags, 0)
    return frozenset(_template(piece.name) for tensor in table.expand(dims) for piece in tensor.pieces[layout])


def _template(name: str) -> str:
    return re.sub(r"blocks\.\d+\.", "blocks.#.", name)


def _foreign(checkpoint: Checkpoint) -> tuple[str, str, str] | None:
    for name, pattern, advice in FOREIGN:
        match = next((key for key in checkpoint.tensors if re.search(pattern, key)), None)
        if match:
            return name, advice, match
    return None


def refuse_quantised(checkpoint: Checkpoint) -> None:
    """Raise IncompatibleError where numbers are stored that mean nothing without their scales."""
    for name, pattern in QUANTISED:
        keys = [key for key in checkpoint.tensors if re.search(pattern, key)]
        if keys:
            raise IncompatibleError(
                "model.quantised",
                f"{checkpoint.reference} is stored as {name}, which this version does not read",
                facts={"file": checkpoint.reference, "key": keys[0], "found": f"{len(keys)} such keys"},
                fix="use the bf16 checkpoint that it was made from",
            )


def _mixed(checkpoint: Checkpoint, best: Candidate, rival: Candidate) -> IncompatibleError:
    def name(c: Candidate) -> str:
        return f"{c.table.family} {c.layout} with prefix `{c.prefix}` (score {c.score:.2f})"

    return IncompatibleError(
        "model.mixed-names",
        f"{checkpoint.reference} mixes two namings of one model",
        facts={"one": name(best), "other": name(rival)},
        fix="use a file whose keys are all of one kind",
    )
