"""Adapters as PEFT, diffusers and the lycoris package write them, each with the deltas that the producer itself computes.

Models are tiny and in fp64, so that a merged weight minus the base's is the delta to 1e-12; factors are drawn as fp32
numbers (their stock start is zero), in which they are saved. Every alpha differs from its rank.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeArgument=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportPrivateUsage=false, reportOperatorIssue=false
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

__all__ = [
    "Made", "canonical", "deltas_of", "diffusers_model", "diffusers_pipeline", "draw", "edit_config", "loaded_delta", "lycoris_file",
    "merged_delta", "peft_folder", "raw_peft", "rename",
]  # fmt: skip

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


def raw_peft(model: nn.Module, config: Any, folder: Path) -> Made:
    """A raw state dict of a wrapped model's trained parameters, keys with the adapter's name, beside PEFT's own config."""
    from peft import get_peft_model
    from safetensors.torch import save_file

    made = peft_folder(model, config, folder)
    wrapped = get_peft_model(model.float(), config)
    draw(wrapped.parameters())
    trained = {key: parameter.detach().contiguous() for key, parameter in wrapped.named_parameters() if parameter.requires_grad}
    save_file(trained, folder / "adapter_model.safetensors", {"format": "pt"})
    return made


def rename(
    made: Made,
    change: Callable[[str], str],
    *,
    metadata: Mapping[str, str] | None = None,
    more: Tensors | None = None,
    dtype: torch.dtype | None = None,
) -> Made:
    """The same tensors under other keys, with some `more`, in a file of its own."""
    from safetensors.torch import load_file, save_file

    source = next(made.path.glob("*.safetensors")) if made.path.is_dir() else made.path
    tensors = {change(key): tensor.to(dtype or tensor.dtype) for key, tensor in load_file(source).items()}
    file = source.with_name("renamed.safetensors")
    save_file({**tensors, **(more or {})}, file, dict(metadata or {"format": "pt"}))
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


# -- diffusers ------------------------------------------------------------------------------------------------------------


def diffusers_pipeline(model: nn.Module, config: Any, folder: Path, *, header: bool = True) -> Made:
    """What FluxPipeline.save_lora_weights writes; deltas by the model's own fusion of what was trained."""
    from diffusers import FluxPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft import get_peft_model_state_dict

    deltas = _trained(model, config)
    fields = _collate_lora_metadata({"transformer": model}) if header else {}
    FluxPipeline.save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(model), **fields)
    return Made(folder, deltas)


def diffusers_model(model: nn.Module, config: Any, folder: Path) -> Made:
    """What a model's save_lora_adapter writes."""
    deltas = _trained(model, config)
    model.save_lora_adapter(folder, adapter_name="default")
    return Made(folder, deltas)


def _trained(model: nn.Module, config: Any) -> dict[str, Tensor]:
    """A model with an adapter of fp32 numbers, and what it adds, worked out in fp64 on a copy."""
    from copy import deepcopy

    before = {key: tensor.detach().double().clone() for key, tensor in model.state_dict().items()}
    model.float().add_adapter(config)
    draw(model.parameters())
    fused = deepcopy(model).double()
    fused.fuse_lora()
    after = {key.replace(".base_layer.", "."): tensor for key, tensor in fused.state_dict().items() if ".lora_" not in key}
    return merged_delta(before, after)


def loaded_delta(model: nn.Module, path: Path, prefix: str | None, **options: Any) -> dict[str, Tensor]:
    """What diffusers' own loader makes of a file."""
    before = {key: tensor.detach().double().clone() for key, tensor in model.state_dict().items()}
    model = model.double()
    model.load_lora_adapter(str(path), prefix=prefix, weight_name=None, use_safetensors=True, **options)
    model.fuse_lora()
    after = {key.replace(".base_layer.", "."): tensor for key, tensor in model.state_dict().items() if ".lora_" not in key}
    return merged_delta(before, after)


# -- LyCORIS --------------------------------------------------------------------------------------------------------------


def lycoris_file(model: nn.Module, blocks: list[str], file: Path, *, dtype: torch.dtype = torch.float32, **options: Any) -> Made:
    """What the lycoris package saves for a model whose classes `blocks` it trains; deltas by forward passes of its modules."""
    import logging

    from lycoris import LycorisNetwork, create_lycoris
    from safetensors.torch import save_file

    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    LycorisNetwork.apply_preset({"target_module": blocks})
    model = model.float()
    names = {id(module): name for name, module in model.named_modules()}
    network = create_lycoris(model, 1.0, **options)
    network.apply_to()
    draw(network.parameters())
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype).float()
    deltas: dict[str, Tensor] = {}
    for module in network.loras:
        # The rotations of LyCORIS are worked out in fp32.
        exact = torch.float32 if options["algo"] in ("diag-oft", "boft") else torch.float64
        deltas |= _forward_delta(module, names[id(module.org_module[0])], exact)
    state = {key: tensor.detach().to(dtype).contiguous().clone() for key, tensor in network.state_dict().items()}
    assert state, "apply_to() comes before state_dict()"
    save_file(state, file, {"lycoris_config": json.dumps(options), "format": "pt"})
    return Made(file, deltas)


def _forward_delta(module: Any, name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Of a linear layer or a convolution, by what the trained module does to a basis."""
    layer = module.org_module[0]
    before = layer.weight.detach().double().clone()
    if not isinstance(layer, nn.Linear | nn.Conv2d):  # a norm, which LyCORIS merges by adding
        state = {key: tensor.detach().double().clone() for key, tensor in layer.state_dict().items()}
        module.double().merge_to(1.0)
        return {f"{name}.{key}": layer.state_dict()[key] - tensor for key, tensor in state.items()}
    module.to(dtype)
    layer.to(dtype)
    with torch.no_grad():
        if isinstance(layer, nn.Conv2d):
            after = _kernel(module, layer, dtype)
        else:
            eye = torch.eye(layer.in_features, dtype=dtype)
            after = (module(eye).double() - module(torch.zeros_like(eye)).double()).T
    return {f"{name}.weight": after - before}


def _kernel(module: Any, layer: nn.Conv2d, dtype: torch.dtype) -> Tensor:
    """The kernel of a convolution from its answers to single points (stride and padding do not hide any of it)."""
    height, width = layer.kernel_size
    channels = layer.in_channels
    found = torch.zeros(layer.weight.shape, dtype=torch.float64)
    size = 4 * max(layer.stride[0], height)
    zero = module(torch.zeros(1, channels, size, size, dtype=dtype))
    for y in range(height):
        for x in range(width):
            points = torch.zeros(channels, channels, size, size, dtype=dtype)
            at = (2 * layer.stride[0] - layer.padding[0] + y, 2 * layer.stride[1] - layer.padding[1] + x)
            points[torch.arange(channels), torch.arange(channels), at[0], at[1]] = 1
            found[:, :, y, x] = (module(points) - zero)[:, :, 2, 2].T
    return found


# -- Stable Diffusion -------------------------------------------------------------------------------------------------------


def saved_pipeline(kind: str, parts: Mapping[str, Any], modules: Mapping[str, Any], folder: Path, stored: Callable[[str], str]) -> Made:
    """save_lora_weights of a pipeline's class for several of its parts, every part with a rank and an alpha of its own."""
    import diffusers
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig, get_peft_model_state_dict

    layers: dict[str, Any] = {}
    deltas: dict[str, Tensor] = {}
    for index, (part, model) in enumerate(parts.items()):
        config = LoraConfig(r=2 + index, lora_alpha=5 + index, target_modules=modules[part])
        before = {key: tensor.detach().double().clone() for key, tensor in model.state_dict().items()}
        model.float().add_adapter(config)
        draw(model.parameters(), seed=index)
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(model)
        after = {}
        for name, layer in model.named_modules():
            if hasattr(layer, "get_delta_weight"):
                layer.double()
                after[f"{name}.weight"] = before[f"{name}.weight"] + layer.get_delta_weight("default")
        deltas |= {stored(f"{part}/{name}"): tensor - before[name] for name, tensor in after.items()}
    getattr(diffusers, kind).save_lora_weights(folder, **layers, **_collate_lora_metadata(dict(parts)))
    return Made(folder, deltas)


PRESET = """
enable_conv = true
unet_target_module = ["UNetMidBlock2DCrossAttn", "Downsample2D"]
unet_target_name = ["conv_in", "up_blocks.0.resnets.0.conv_shortcut", "up_blocks.0.upsamplers.0.conv"]
text_encoder_target_module = ["CLIPAttention", "CLIPMLP"]
text_encoder_target_name = []
"""


def kohya_file(parts: Mapping[str, Any], file: Path, stored: Callable[[str], str], **options: Any) -> Made:
    """What LyCORIS' network for kohya's trainer saves for a pipeline, convolutions included."""
    import logging

    from lycoris import kohya
    from safetensors.torch import save_file

    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    models = {part: model.float() for part, model in parts.items()}
    names = {id(module): f"{part}/{name}" for part, model in models.items() for name, module in model.named_modules()}
    texts = [model for part, model in models.items() if part.startswith("text")]
    dim, alpha = options.pop("linear_dim"), options.pop("linear_alpha")
    # The stock preset names the time embedding twice, and refuses itself.
    preset = file.with_suffix(".toml")
    preset.write_text(PRESET)
    options = {"preset": str(preset), **options}
    network = kohya.create_network(1.0, dim, alpha, None, texts if len(texts) > 1 else texts[0] if texts else [], models["unet"], **options)
    network.apply_to(texts, models["unet"], bool(texts), True)
    draw(network.parameters())
    deltas: dict[str, Tensor] = {}
    for module in [*network.text_encoder_loras, *network.unet_loras]:
        deltas |= _forward_delta(module, stored(names[id(module.org_module[0])]), torch.float64)
    save_file({key: tensor.detach().float().contiguous().clone() for key, tensor in network.state_dict().items()}, file)
    return Made(file, deltas)
