"""Learning a family's table from one checkpoint: components by their prefixes, lists of blocks, and equal sizes.

Nothing is known of the model but its keys and shapes. A list of numbered blocks becomes one row for every name that all
of its blocks have in the same shape; what only some of them have is kept by name. Equal sizes get one symbol, so a
wider or deeper model of the same kind fits, and one whose shapes disagree does not. By chance two different sizes may
be equal in the file that is learnt from: then the table is stricter than it need be, and a person can part them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.dtypes import DTYPES
from fluxsmith.io.quantised import decoded
from fluxsmith.layouts.structural import stage
from fluxsmith.layouts.table_file import TableFile, TensorEntry

__all__ = ["learn"]

#: Sizes below this are taken as they are: kernels, small fixed numbers of channels.
SYMBOLIC = 8

# What stands before the keys of a component in all-in-one files. (prefix, component)
_PREFIXES = (
    ("model.diffusion_model.", "denoiser"), ("first_stage_model.", "vae"), ("vae.", "vae"),
    ("cond_stage_model.", "text_encoder"), ("conditioner.embedders.0.", "text_encoder"), ("conditioner.embedders.1.", "text_encoder_2"),
    ("text_encoders.clip_l.", "clip_l"), ("text_encoders.clip_g.", "clip_g"), ("text_encoders.t5xxl.", "t5"),
    *((f"{part}/", part) for part in ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")),
)  # fmt: skip
_NUMBERED = re.compile(r"^((?:[^.]*[^.\d][^.]*\.)+?)(\d+)\.(.+)$")

Shapes = dict[str, tuple[int, ...]]


@dataclass
class _Learnt:
    """What has been found so far."""

    components: dict[str, str]
    blocks: dict[str, str] = field(default_factory=dict[str, str])
    dims: dict[str, int] = field(default_factory=dict[str, int])
    tensors: list[TensorEntry] = field(default_factory=list[TensorEntry])

    def add(self, component: str, name: str, shape: Iterable[int], block: str | None = None) -> None:
        """One row; sizes get their symbols."""
        sizes = [self._size(size) for size in shape]
        several = component if len(self.components) > 1 else None
        self.tensors.append(TensorEntry(name=name, shape=sizes, component=several, block=block))

    def _size(self, size: int) -> int | str:
        if size < SYMBOLIC:
            return size
        self.dims[f"d{size}"] = size
        return f"d{size}"

    def symbol(self, container: str) -> str:
        """A new symbol for a list of blocks, named as the list."""
        word = re.sub(r"\W", "_", container.rstrip(".").rpartition(".")[2]) or "block"
        symbol, number = word, 2
        while symbol in self.blocks or symbol in self.components:
            symbol, number = f"{word}{number}", number + 1
        return symbol


def learn(checkpoint: Checkpoint, family: str) -> TableFile:
    """The table of a checkpoint's kind, under the name `family`; only its header is used."""
    checkpoint = decoded(checkpoint)
    marks = [key for key, view in checkpoint.tensors.items() if not all(DTYPES[dtype].is_float for dtype in view.dtypes)]
    shapes: Shapes = {key: view.shape for key, view in checkpoint.tensors.items() if key not in marks}
    parts = _components(shapes)
    learnt = _Learnt({name: prefix for name, (prefix, _) in parts.items()})
    for name, (prefix, own) in parts.items():
        _learn_component(learnt, name, prefix, own)
    return TableFile.model_validate(
        {
            "fluxsmith-table": 1, "family": family, "components": learnt.components, "blocks": learnt.blocks,
            "dims": dict(sorted(learnt.dims.items(), key=lambda item: item[1])),
            "tensors": [entry.model_dump() for entry in learnt.tensors], "marks": marks,
        }
    )  # fmt: skip


def _components(shapes: Shapes) -> dict[str, tuple[str, Shapes]]:
    """Component -> its prefix and tensors; one component called `model` where not every key has a known prefix."""
    found: dict[str, tuple[str, Shapes]] = {}
    for key, shape in shapes.items():
        prefix, component = next(((p, c) for p, c in _PREFIXES if key.startswith(p)), ("", ""))
        if not component or found.get(component, (prefix,))[0] != prefix:
            return {"model": ("", dict(shapes))}
        found.setdefault(component, (prefix, {}))[1][key[len(prefix) :]] = shape
    return {component: found[component] for _, component in _PREFIXES if component in found}


def _learn_component(learnt: _Learnt, component: str, prefix: str, shapes: Shapes) -> None:
    """Rows as they are used, as far as names tell, each list of blocks together."""
    lists: dict[str, dict[int, Shapes]] = {}
    for name, shape in shapes.items():
        if match := _NUMBERED.match(name):
            lists.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = shape
    whole = {before: blocks for before, blocks in lists.items() if set(blocks) == set(range(len(blocks))) and len(blocks) > 1}
    done: set[str] = set()
    for name in sorted(shapes, key=lambda name: stage(name, "block.0" if _NUMBERED.match(name) else None)):
        match, shape = _NUMBERED.match(name), shapes[name]
        if match is None or match[1] not in whole:
            learnt.add(component, name, shape)
        elif match[1] not in done:
            done.add(match[1])
            _learn_blocks(learnt, component, prefix, match[1], whole[match[1]])


def _learn_blocks(learnt: _Learnt, component: str, prefix: str, before: str, blocks: Mapping[int, Shapes]) -> None:
    """Rows that all blocks share, then those of single blocks."""
    shared = [rest for rest, shape in blocks[0].items() if all(block.get(rest) == shape for block in blocks.values())]
    symbol = learnt.symbol(before)
    if shared:
        learnt.blocks[symbol] = f"{prefix}{before}".rstrip(".")
    for rest in shared:
        learnt.add(component, f"{before}{{{symbol}}}.{rest}", blocks[0][rest])
    for number, block in sorted(blocks.items()):
        for rest, shape in block.items():
            if rest not in shared:
                learnt.add(component, f"{before}{number}.{rest}", shape, f"{symbol}.{number}")
