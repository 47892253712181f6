"""Adapters as PEFT, diffusers and the lycoris package write them, each with the deltas that the producer itself computes.

Models are tiny and in fp64, so that a merged weight minus the base's is the delta to 1e-12; factors are drawn as fp32
numbers (their stock start is zero), in which they are saved. Every alpha differs from its rank.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeArgument=false, reportArgumentType=false, reportAttributeAccessIssue=false
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fluxsmith.adapters.module import Adapter
from fluxsmith.adapters.tensors import delta_of, read_module
from fluxsmith.layouts import Bound
from fluxsmith.layouts.table import Canonical

__all__ = ["Made", "canonical", "deltas_of", "draw", "merged_delta", "peft_folder", "rename"]

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Made:
    """An adapter: where it lies, and what it adds to the stored tensors of the model that it was made for."""

    path: Path
    deltas: dict[str, Tensor]


def draw(parameters: Any, seed: int = 7, spread: float = 0.2) -> None:
    """Random values for every parameter that is trained, as fp32 numbers."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.data = (torch.randn(parameter.shape, generator=generator) * spread).to(parameter.dtype)


def merged_delta(before: Tensors, after: Tensors) -> dict[str, Tensor]:
    """What changed between two state dicts."""
    return {key: after[key] - tensor for key, tensor in before.items() if not torch.equal(after[key], tensor)}


def peft_folder(model: nn.Module, config: Any, folder: Path) -> Made:
    """PEFT's own folder, and what its merge_and_unload adds."""
    from peft import get_peft_model

    before = {key: tensor.detach().double().clone() for key, tensor in model.state_dict().items()}
    wrapped = get_peft_model(model.double(), config)
    draw(wrapped.parameters())
    wrapped.float().save_pretrained(folder)
    merged = wrapped.double().merge_and_unload()
    return Made(folder, merged_delta(before, merged.state_dict()))


def rename(made: Made, change: Callable[[str], str], file: Path, metadata: dict[str, str] | None = None) -> Made:
    """The same tensors under other keys, in a file of its own."""
    from safetensors.torch import load_file, save_file

    source = next(made.path.glob("*.safetensors")) if made.path.is_dir() else made.path
    save_file({change(key): tensor for key, tensor in load_file(source).items()}, file, metadata or {"format": "pt"})
    return Made(file, made.deltas)


def canonical(spec: Mapping[str, Canonical], layout: str, deltas: Tensors) -> dict[str, Tensor]:
    """Stored deltas of a layout as those of canonical tensors; every one must have a place."""
    found: dict[str, Tensor] = {}
    placed: set[str] = set()
    for tensor in spec.values():
        for piece in tensor.pieces.get(layout, ()):
            if piece.name in deltas and not piece.transposed:
                whole = found.setdefault(tensor.name, torch.zeros(tensor.shape, dtype=torch.float64))
                rows = deltas[piece.name][piece.at : piece.at + piece.rows].double()
                whole[piece.start : piece.start + piece.rows] += rows.reshape(whole[piece.start : piece.start + piece.rows].shape)
                placed.add(piece.name)
    assert placed == set(deltas)
    return found


def deltas_of(adapter: Adapter, base: Bound, weights: Tensors) -> dict[str, Tensor]:
    """What an opened adapter adds to canonical tensors; `weights` are the base's."""
    found: dict[str, Tensor] = {}
    for module in adapter.modules:
        target, tensor = module.target, base.spec[module.target.tensor]
        whole = weights[target.tensor].float()
        stored = torch.cat([whole[span.start : span.start + span.rows] for span in target.spans]).reshape(target.shape)
        delta = delta_of(read_module(module), stored).reshape(target.shape)
        into = found.setdefault(target.tensor, torch.zeros(tensor.shape, dtype=torch.float64))
        for span in target.spans:
            part = into[span.start : span.start + span.rows]
            part += delta[span.at : span.at + span.rows].reshape(part.shape)
    return found


def edit_config(folder: Path, **fields: Any) -> None:
    """Change fields of a folder's adapter_config.json."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
