"""What an adapter is, from its headers: nothing is refused that has a header; what is wrong with it is a field."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fluxsmith.adapters import Adapter, Module
from fluxsmith.adapters.algorithms import ALGORITHMS
from fluxsmith.adapters.converting.conversion import model_tensors
from fluxsmith.adapters.reading.detection import Reading, readings
from fluxsmith.adapters.reading.opening import open_adapter
from fluxsmith.adapters.reading.sidecars import software_of
from fluxsmith.adapters.writing.provenance import recorded
from fluxsmith.analysis.kinds import in_order
from fluxsmith.errors import FluxsmithError
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.layouts import Bound, known_tables

__all__ = ["AdapterInspection", "Group", "inspect_adapter", "module_norms"]

#: Fields of a header that say by what an adapter was made, and what it listens to.
_TOLD = (
    "software", "ss_network_module", "ss_base_model_version", "ss_sd_model_name", "ss_output_name", "ss_training_comment",
    "modelspec.title", "modelspec.architecture", "modelspec.author", "modelspec.license", "modelspec.trigger_phrase",
    "modelspec.usage_hint",
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """The modules of one algorithm in one kind of block: how many, the smallest and largest rank, alpha and scale."""

    algorithm: str
    kind: str
    modules: int
    rank: tuple[int, int] | None
    alpha: tuple[float, float] | None
    scale: tuple[float, float]


@dataclass(frozen=True)
class AdapterInspection:
    """What an adapter is. `readings` are the dialects that explain some of its keys, best first, with their scores;
    `blocks` has the modules of every block, `norms` the size of the delta by block where it was asked for (None: that
    of a block depends on the base). `error` says why it cannot be applied; then there are no modules."""

    checkpoint: Checkpoint = field(repr=False)
    adapter: Adapter | None = field(repr=False)
    readings: Mapping[str, float]
    error: FluxsmithError | None = None
    blocks: Mapping[str, tuple[Module, ...]] = field(default_factory=dict[str, "tuple[Module, ...]"], repr=False)
    norms: Mapping[str, float | None] = field(default_factory=dict[str, "float | None"])

    @property
    def modules(self) -> tuple[Module, ...]:
        return self.adapter.modules if self.adapter else ()

    @property
    def layouts(self) -> dict[str, str]:
        """The layout in which each component is named."""
        return {module.target.component: module.target.layout for module in self.modules}

    @property
    def producer(self) -> dict[str, str]:
        """What the header says of the program, the base and the trigger."""
        metadata = self.checkpoint.metadata
        software = software_of(self.adapter.metadata) if self.adapter else ""
        told = {key: metadata[key] for key in _TOLD if key in metadata and key != "software"}
        return {"software": software, **told} if software else told

    @property
    def made(self) -> dict[str, Any]:
        """What fluxsmith made it from, where it did."""
        return recorded(self.checkpoint.metadata)

    @property
    def scale_source(self) -> str:
        """Where the strength of the modules stands, in words."""
        if self.adapter is None:
            return ""
        scaled = [module for module in self.modules if module.algorithm in ("lora", "loha", "lokr", "glora")]
        with_alpha = sum("alpha" in module.settings for module in scaled)
        if not scaled:
            return "there is none: the modules are differences or rotations"
        if with_alpha == len(scaled):
            return "alpha over rank; alpha stands beside every module"
        sidecar = next(
            (name for name in ("adapter_config", "lora_adapter_metadata", "lycoris_config") if name in self.adapter.metadata), None
        )
        rest = f"from {sidecar}" if sidecar else "1, as nothing says it"
        return rest if not with_alpha else f"alpha over rank for {with_alpha} of {len(scaled)} modules, the others {rest}"

    @property
    def groups(self) -> list[Group]:
        """The modules by algorithm and kind of block."""
        found: dict[tuple[str, str], list[Module]] = {}
        for block, modules in self.blocks.items():
            for module in modules:
                kind = "biases" if module.target.stored.endswith(".bias") else block.partition(".")[0]
                found.setdefault((_title(module), kind), []).append(module)
        return [_group(algorithm, kind, modules) for (algorithm, kind), modules in found.items()]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        adapter = self.adapter
        return {
            "reference": self.checkpoint.reference, "kind": "adapter", "dialect": adapter.dialect if adapter else None,
            "score": adapter.score if adapter else None, "readings": dict(self.readings), "family": adapter.family if adapter else None,
            "layouts": self.layouts, "tensors": len(self.checkpoint.tensors), "bytes": self.checkpoint.nbytes,
            "dtypes": sorted(self.checkpoint.dtypes), "modules": len(self.modules),
            "components": list(adapter.components) if adapter else [],
            "groups": [vars(group) for group in self.groups], "blocks": {block: len(modules) for block, modules in self.blocks.items()},
            "scale": self.scale_source, "producer": self.producer, "made": self.made, "notes": list(adapter.notes) if adapter else [],
            "dropped": dict(adapter.dropped) if adapter else {}, "norms": dict(self.norms),
            "error": self.error.as_dict() if self.error else None, "metadata": dict(self.checkpoint.metadata),
        }  # fmt: skip


def inspect_adapter(
    checkpoint: Checkpoint, *, base: Bound | None = None, components: Collection[str] = (), ignore: Sequence[str] = ()
) -> AdapterInspection:
    """Inspect an adapter; what keeps it from being applied is its `error`, not an exception."""
    tables = known_tables()
    found = readings(list(checkpoint.tensors), tables) if base is None else []
    scores = _scores(found)
    try:
        adapter = open_adapter(checkpoint, base=base, components=components, ignore=ignore)
    except FluxsmithError as error:
        return AdapterInspection(checkpoint, None, scores, error)
    blocks: dict[str, list[Module]] = {}
    tensors = {tensor.name: tensor for tensor in model_tensors(adapter, base, [])}
    for module in adapter.modules:
        tensor = tensors[module.target.tensor]
        blocks.setdefault(tensor.block or _outside(tensor.name), []).append(module)
    ordered = {block: tuple(blocks[block]) for block in in_order(blocks)}
    return AdapterInspection(checkpoint, adapter, {f"{adapter.dialect}": adapter.score} | scores, None, ordered)


def _scores(found: Iterable[Reading]) -> dict[str, float]:
    """The best score of every dialect."""
    scores: dict[str, float] = {}
    for reading in found:
        scores.setdefault(reading.dialect.name, round(reading.score, 4))
    return scores


def _outside(name: str) -> str:
    """What a tensor outside of all blocks is counted under."""
    return name.partition(".")[0]


def _title(module: Module) -> str:
    decomposes = not {"magnitude", "dora_scale"}.isdisjoint(module.factors)
    return f"dora of {module.algorithm}" if decomposes else module.algorithm


def _group(algorithm: str, kind: str, modules: Sequence[Module]) -> Group:
    ranks = [rank for m in modules if (rank := ALGORITHMS[m.algorithm].rank(m.shapes))]
    alphas = [module.settings["alpha"] for module in modules if "alpha" in module.settings]
    scales = [module.settings.get("scale", 1.0) for module in modules]
    rank, alpha = (min(ranks), max(ranks)) if ranks else None, (min(alphas), max(alphas)) if alphas else None
    return Group(algorithm, kind, len(modules), rank, alpha, (min(scales), max(scales)))


def module_norms(found: AdapterInspection, base: Bound | None) -> dict[str, float | None]:
    """The Frobenius norm of the delta by block; None where it depends on a base that is not given."""
    from fluxsmith.adapters.converting.materialising import base_weight
    from fluxsmith.adapters.tensors import delta_of, read_module

    norms: dict[str, float | None] = {}
    for block, modules in found.blocks.items():
        squares = 0.0
        for module in modules:
            tensors = read_module(module)
            reads = tensors.rules.reads(tensors.shapes) != "nothing"
            if reads and base is None:
                squares = math.nan
                break
            delta = delta_of(tensors, base_weight(base, module.target) if reads and base is not None else None)
            squares += float(delta.double().square().sum())
        norms[block] = None if math.isnan(squares) else math.sqrt(squares)
    return norms
