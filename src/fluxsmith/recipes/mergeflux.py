"""What MergeFlux's two scripts mean, as recipes.

    weighted_recipe   mergeflux.py: a weighted average whose ratios ramp over the block numbers
    delta_recipe      mergeflux-delta.py: a base plus pruned, weighted and combined differences from it

Both read files key by key, without a leading `model.diffusion_model.`. The numbers are those of the scripts to the
last bit: ratios between two blocks are computed in fp32, task weights are rounded to the type of the calculation.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fluxsmith.errors import IncompatibleError, UsageError
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.dtypes import DTYPES, dtype_from_name
from fluxsmith.io.quantised import decoded
from fluxsmith.methods import find_method
from fluxsmith.recipes.calls import call
from fluxsmith.recipes.expressions import Expression, Model, model
from fluxsmith.recipes.recipe import Missing, OutputOptions, Recipe
from fluxsmith.recipes.schedules import Number, Schedule
from fluxsmith.recipes.selectors import Selector

__all__ = ["BlockRatios", "DeltaMerge", "Translation", "WeightedMerge", "delta_recipe", "weighted_recipe"]

PREFIX = "model.diffusion_model."
#: A ratio up to this much, and so every negative one, means that the model is not used for a tensor.
LEAST_RATIO = 1e-6

_BLOCK = re.compile(r"(?:single_blocks|double_blocks)\.(\d+)\.")
_COMPUTE: dict[str, Literal["fp32", "fp16", "bf16"]] = {
    "float": "fp32", "fp16": "fp16", "bf16": "bf16", "fp8_e4m3": "fp32", "fp8_e5m2": "fp32",
}  # fmt: skip

Ratios = tuple[float, ...]


@dataclass(frozen=True)
class WeightedMerge:
    """The arguments of mergeflux.py that decide the result; None where they were not given."""

    models: Sequence[str]
    base_ratios: Sequence[float] | None = None
    start_ratios: Sequence[float] | None = None
    end_ratios: Sequence[float] | None = None
    start_block: int | None = None
    end_block: int | None = None
    precision: str = "float"
    saving_precision: str = "bf16"
    save_metadata: bool = False


@dataclass(frozen=True)
class DeltaMerge:
    """The arguments of mergeflux-delta.py that decide the result, and the seed of random pruning, which it lacks."""

    base_model: str
    models: Sequence[str]
    prune_method: str = "magnitude"
    merge_method: str = "disjoint_merge"
    density: float = 0.5
    task_weights: Sequence[float] | None = None
    majority_sign_method: str = "total"
    precision: str = "float"
    saving_precision: str = "bf16"
    save_metadata: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Translation:
    """A recipe, what its user has to know of it (`notes`), and its numbers in words (`story`)."""

    recipe: Recipe
    notes: tuple[str, ...] = ()
    story: tuple[str, ...] = ()


@dataclass(frozen=True)
class BlockRatios:
    """The ratios of every tensor: `base` outside of blocks, else by block number from `start` to `end`.

    Double and single blocks share the numbers, so double block 18 of 0..37 is in the middle.
    """

    base: Ratios
    start: Ratios
    end: Ratios
    first: int
    last: int

    def of_key(self, key: str) -> Ratios:
        """The ratios of a tensor."""
        block = block_number(key)
        return self.base if block is None else self.of_block(block)

    def of_block(self, block: int) -> Ratios:
        """The ratios of a block; where `first` is behind `last` there is a step at `first` in place of a ramp."""
        if block < self.first:
            return self.start
        if block > self.last:
            return self.end
        if self.first == self.last:
            return self.start
        alpha = (block - self.first) / (self.last - self.first)
        start, end = np.array(self.start, np.float32), np.array(self.end, np.float32)
        mixed = np.float32(1 - alpha) * start + np.float32(alpha) * end
        return tuple(float(ratio) for ratio in mixed)


def block_number(key: str) -> int | None:
    """The number of the block that a tensor belongs to, of either kind."""
    match = _BLOCK.search(key)
    return int(match[1]) if match else None


def weighted_recipe(wish: WeightedMerge, checkpoints: Sequence[Checkpoint]) -> Translation:
    """The recipe of a weighted merge; `checkpoints` are the models', opened by their headers.

    Raises UsageError for ratios that do not fit, IncompatibleError where no tensor would be left.
    """
    checkpoints = [decoded(checkpoint) for checkpoint in checkpoints]
    names = [_canonical_keys(checkpoint) for checkpoint in checkpoints]
    ratios = _block_ratios(wish, names)
    use = _Use.survey(ratios, names)
    nodes = _models(wish.models)
    read = sorted(use.models)
    blocks = sorted({b for i in read for key in names[i] if (b := block_number(key)) is not None})
    weights = [_schedule(ratios, i, blocks) for i in read]
    root = call(find_method("linear"), [nodes[i] for i in read], {"weights": weights})
    metadata = {
        "merged_from": json.dumps(list(wish.models)),
        "base_ratios": json.dumps(list(ratios.base)),
        "start_ratios": json.dumps(list(ratios.start)),
        "end_ratios": json.dumps(list(ratios.end)),
        "start_block": str(ratios.first),
        "end_block": str(ratios.last),
    }
    recipe = _recipe(wish, root, "skip", metadata)
    notes = [*_block_note(wish, blocks), *use.notes([node.name for node in nodes]), *_file_notes(wish, nodes, checkpoints, read)]
    return Translation(recipe, tuple(notes), tuple(_ratio_lines(ratios, blocks)))


def delta_recipe(wish: DeltaMerge, checkpoints: Sequence[Checkpoint]) -> Translation:
    """The recipe of a delta merge; `checkpoints` are the base's and the models', opened by their headers.

    Raises UsageError for weights or a density that cannot be meant.
    """
    weights = _task_weights(wish)
    density, note = _density(wish)
    checkpoints = [decoded(checkpoint) for checkpoint in checkpoints]
    names = [_canonical_keys(checkpoint) for checkpoint in checkpoints]
    nodes = _models([wish.base_model, *wish.models])
    options: dict[str, Any] = {"weights": weights, "combine": wish.merge_method.removesuffix("_merge"), "sign": wish.majority_sign_method}
    if wish.prune_method != "none":
        options["density"] = density
    method = "delta_merge" if wish.prune_method == "none" else f"{wish.prune_method}_delta_merge"
    metadata = {
        "base_model": wish.base_model,
        "merged_models": json.dumps(list(wish.models)),
        "task_weights": json.dumps(weights),
        "prune_method": wish.prune_method,
        "merge_method": wish.merge_method,
        "density": str(wish.density),
        "majority_sign_method": wish.majority_sign_method,
    }
    recipe = _recipe(wish, call(find_method(method), nodes, options), "base", metadata)
    notes = [*note, *_key_notes(names, nodes), *_file_notes(wish, nodes, checkpoints, range(len(nodes)))]
    story = [f"weight {weight:.9g}  {node.name}" for node, weight in zip(nodes[1:], weights, strict=True)]
    return Translation(recipe, tuple(notes), tuple(story))


def _recipe(wish: WeightedMerge | DeltaMerge, root: Expression, missing: Missing, metadata: Mapping[str, str]) -> Recipe:
    """What the two scripts have in common: bare names, one file, and the parameters in the metadata if asked for."""
    precisions = {"calculation_precision": wish.precision, "saving_precision": wish.saving_precision}
    return Recipe(
        root,
        missing=missing,
        output=OutputOptions(dtype=dtype_from_name(wish.saving_precision).name),
        seed=wish.seed if isinstance(wish, DeltaMerge) else 0,
        title="MergeFlux of " + ", ".join(node.name for node in root.models()),
        compute=_COMPUTE[wish.precision],
        structural=True,
        strip=PREFIX,
        metadata={**metadata, **precisions} if wish.save_metadata else {},
    )


def _canonical_keys(checkpoint: Checkpoint) -> dict[str, None]:
    """A file's keys without the prefix, once each, in their order."""
    return dict.fromkeys(key.removeprefix(PREFIX) for key in checkpoint.tensors)


def _models(references: Sequence[str]) -> list[Model]:
    """A node for every reference, under names that differ also where file names, or the files, are the same."""
    nodes: list[Model] = []
    taken: set[str] = set()
    for reference in references:
        short = model(reference).name
        name = next(n for n in (short, *(f"{short}_{i}" for i in range(2, len(references) + 2))) if n not in taken)
        taken.add(name)
        nodes.append(model(reference, name=name))
    return nodes


# Ratios of the weighted merge


def _block_ratios(wish: WeightedMerge, names: Sequence[Mapping[str, None]]) -> BlockRatios:
    count = len(wish.models)
    base = _checked_ratios("--base_ratios", wish.base_ratios, (1.0 / count,) * count)
    start = _checked_ratios("--start_ratios", wish.start_ratios, base)
    end = _checked_ratios("--end_ratios", wish.end_ratios, base)
    blocks = {block for keys in names for key in keys if (block := block_number(key)) is not None}
    if not blocks:
        return BlockRatios(base, start, end, -1, -1)
    first = min(blocks) if wish.start_block is None else wish.start_block
    last = max(blocks) if wish.end_block is None else wish.end_block
    return BlockRatios(base, start, end, first, last)


def _block_note(wish: WeightedMerge, blocks: Sequence[int]) -> list[str]:
    """Whether arguments for blocks are without effect, as in files with diffusers names."""
    given = [value for value in (wish.start_ratios, wish.end_ratios, wish.start_block, wish.end_block) if value is not None]
    return ["no tensor is in a double_blocks.N or single_blocks.N: --base_ratios are used for all of them"] if given and not blocks else []


def _checked_ratios(flag: str, given: Sequence[float] | None, default: Ratios) -> Ratios:
    if given is None:
        return default
    if len(given) != len(default):
        raise UsageError(
            "usage.ratio-count", f"{flag} has {len(given)} numbers for {len(default)} models", fix=f"give one ratio per model to {flag}"
        )
    total = sum(given)
    # torch.isclose of two fp32 numbers, which MergeFlux asks
    if not abs(np.float32(total) - np.float32(1)) <= np.float32(1e-5) + np.float32(1e-8):
        raise UsageError(
            "usage.ratio-sum",
            f"the numbers of {flag} add up to {total:g}, not to 1",
            facts={"given": " ".join(f"{ratio:g}" for ratio in given)},
            fix=f"make them add up to 1{_scaled(flag, given, total)}",
        )
    return tuple(given)


def _scaled(flag: str, given: Sequence[float], total: float) -> str:
    """The same ratios divided by their sum, where that can have been meant."""
    if not 0 < total < float("inf") or min(given) < 0:
        return ""
    return f", as in {flag} " + " ".join(f"{ratio / total:.6g}" for ratio in given)


def _weights(ratios: Ratios) -> Ratios:
    """Ratios as weights: 0 for a model that is not used."""
    return tuple(ratio if ratio > LEAST_RATIO else 0.0 for ratio in ratios)


def _schedule(ratios: BlockRatios, index: int, blocks: Sequence[int]) -> Number:
    """The weight of one model: a number for what is outside of blocks, and others for the blocks that have them."""
    default = _weights(ratios.base)[index]
    groups: dict[float, list[int]] = {}
    for block in blocks:
        groups.setdefault(_weights(ratios.of_block(block))[index], []).append(block)
    entries = tuple((_selector(group, blocks), weight) for weight, group in groups.items() if weight != default)
    return Schedule(default, entries) if entries else default


def _selector(group: Sequence[int], blocks: Sequence[int]) -> Selector:
    numbers = r"\d+" if len(group) == len(blocks) else "0*" + (str(group[0]) if len(group) == 1 else f"({'|'.join(map(str, group))})")
    return Selector(rf"re:(single|double)_blocks\.{numbers}\.")


def _ratio_lines(ratios: BlockRatios, blocks: Sequence[int]) -> list[str]:
    def line(what: str, values: Ratios) -> str:
        return f"{what}  " + " ".join(f"{value:.9g}" for value in values)

    return [line("ratios outside of blocks", ratios.base), *(line(f"ratios of block {b}", ratios.of_block(b)) for b in blocks)]


@dataclass(frozen=True)
class _Use:
    """Which models are used at all, the keys that none is used for, and those that not all who should have."""

    models: set[int]
    omitted: list[str]
    partial: list[str]
    count: int

    @classmethod
    def survey(cls, ratios: BlockRatios, names: Sequence[Mapping[str, None]]) -> "_Use":
        used: set[int] = set()
        omitted: list[str] = []
        partial: list[str] = []
        for key in dict.fromkeys(key for keys in names for key in keys):
            weights = _weights(ratios.of_key(key))
            wanted = {i for i, weight in enumerate(weights) if weight}
            present = {i for i in wanted if key in names[i]}
            used |= present
            if not present:
                omitted.append(key)
            elif present != wanted:
                partial.append(key)
        if not used:
            raise IncompatibleError(
                "model.nothing-left", "no tensor is left: the models with a ratio have none of the tensors that it is for"
            )
        return cls(used, omitted, partial, len(names))

    def notes(self, names: Sequence[str]) -> list[str]:
        """What is left out or comes from some of the models only."""
        notes = [
            f"`{names[i]}` is not read: it has no ratio above {LEAST_RATIO:g} for any of its tensors"
            for i in range(self.count)
            if i not in self.models
        ]
        if self.omitted:
            notes.append(f"{_tensors(self.omitted)} left out: no model that has them has a ratio above {LEAST_RATIO:g} there")
        if self.partial:
            notes.append(f"{_tensors(self.partial)} missing from some models: made from the others, whose ratios are scaled to 1")
        return notes


# Numbers and notes of the delta merge


def _task_weights(wish: DeltaMerge) -> list[float]:
    """The weights as the type of the calculation holds them, as MergeFlux multiplies by a tensor of that type."""
    given = list(wish.task_weights or [1.0] * len(wish.models))
    if len(given) != len(wish.models):
        raise UsageError(
            "usage.weight-count",
            f"--task_weights has {len(given)} numbers for {len(wish.models)} models",
            fix="give one weight per model to --task_weights",
        )
    rounded = [_round(weight, _COMPUTE[wish.precision]) for weight in given]
    wrong = [weight for weight, value in zip(given, rounded, strict=True) if not math.isfinite(value)]
    if wrong:
        raise UsageError("usage.bad-weight", f"{wrong[0]:g} is not a task weight that {wish.precision} can hold")
    return rounded


def _round(number: float, compute: str) -> float:
    """A number rounded to fp32 and from there to the type of the calculation, as torch.tensor does."""
    with np.errstate(over="ignore"):
        single = np.float32(number)
        if compute == "fp16":
            return float(np.float16(single))
    if compute == "fp32" or not np.isfinite(single):
        return float(single)
    bits = int(single.view(np.uint32))
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000  # to the nearest of 16 bits, ties to even
    return float(np.uint32(bits).view(np.float32))


def _density(wish: DeltaMerge) -> tuple[float, list[str]]:
    """The density in the range of a share, with a note where it was outside: MergeFlux takes that as all or nothing."""
    if math.isnan(wish.density):
        raise UsageError("usage.bad-density", "--density must be a number", fix="--density 0.5")
    density = min(max(wish.density, 0.0), 1.0)
    if density == wish.density or wish.prune_method == "none":
        return density, []
    return density, [f"--density {wish.density:g} lies outside of 0 to 1 and is taken as {density:g}"]


def _key_notes(names: Sequence[Mapping[str, None]], nodes: Sequence[Model]) -> list[str]:
    base, *others = names
    surplus = list(dict.fromkeys(key for keys in others for key in keys if key not in base))
    notes = [f"{_tensors(surplus)} in the models only: left out, as the base has no such tensor"] if surplus else []
    for keys, node in zip(others, nodes[1:], strict=True):
        lacking = [key for key in base if key not in keys]
        if lacking:
            notes.append(f"{_tensors(lacking)} missing from `{node.name}`: its delta is zero there")
    return notes


# Notes that both merges have


def _file_notes(
    wish: WeightedMerge | DeltaMerge, nodes: Sequence[Model], checkpoints: Sequence[Checkpoint], read: Sequence[int]
) -> list[str]:
    """What the files hold that a user of MergeFlux would not expect in the result."""
    notes: list[str] = []
    if wish.precision.startswith("fp8"):
        notes.append(f"--precision {wish.precision}: the calculation is in fp32, as MergeFlux does it")
    for i in read:
        twice = [key for key in checkpoints[i].tensors if key.startswith(PREFIX) and key.removeprefix(PREFIX) in checkpoints[i].tensors]
        if twice:
            notes.append(f"{_tensors(twice)} twice in `{nodes[i].name}`, with and without `{PREFIX}`: the later one in the file is used")
    integers = {
        key.removeprefix(PREFIX): None
        for i in read
        for key, view in checkpoints[i].tensors.items()
        if not all(DTYPES[dtype].is_float for dtype in view.dtypes)
    }
    if integers:
        notes.append(f"{_tensors(list(integers))} not floating point: copied as they are from the first model that has them")
    return notes


def _tensors(keys: Sequence[str]) -> str:
    first = keys[0] if len(keys) == 1 else f"first {keys[0]}"
    return f"{len(keys)} tensor{'s' if len(keys) > 1 else ''} ({first})"
