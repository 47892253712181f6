"""Quantised files by the real producers, each with the values that these give back; fp8 by its documents' formula."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["Stored", "comfy", "comfy_legacy", "gguf_file", "int8", "nf4", "random_blocks", "sd_scripts"]

Tensors = dict[str, Tensor]
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}


@dataclass
class Stored:
    """Tensors and metadata as a producer stores them, and the float32 values of what is quantised."""

    tensors: Tensors
    values: Tensors
    metadata: dict[str, str] = field(default_factory=lambda: {"format": "pt"})

    def save(self, file: Path) -> Path:
        save_file(self.tensors, file, self.metadata)
        return file


def matrices(tensors: Mapping[str, Tensor]) -> Tensors:
    """The weights of linear layers, which are what producers quantise."""
    return {key: tensor for key, tensor in tensors.items() if key.endswith(".weight") and tensor.ndim == 2}


def _fp8(
    tensors: Mapping[str, Tensor], scale_of: Callable[[Tensor], Tensor], beside: Callable[[str, Tensor], Tensors], dtype: torch.dtype
) -> Stored:
    stored = Stored(dict(tensors), {})
    for key, tensor in matrices(tensors).items():
        absmax = scale_of(tensor.float().abs())  # broadcasts against the weight, or against its blocks [out, blocks, width]
        scale = (absmax / LARGEST[dtype]).clamp(min=1e-12)
        blocks = tensor.float().reshape(scale.shape[0], scale.shape[1], -1) if scale.ndim == 3 else tensor.float()
        quantised = (blocks / scale).clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)
        stored.values[key] = (quantised.float() * scale).reshape(tensor.shape)
        stored.tensors[key] = quantised.reshape(tensor.shape)
        stored.tensors |= beside(key.removesuffix(".weight"), scale)
    return stored


def comfy_legacy(tensors: Mapping[str, Tensor], *, dtype: torch.dtype = torch.float8_e4m3fn, prefix: str = "") -> Stored:
    """ComfyUI's older convention, with the scales of activations that such files have."""
    stored = _fp8(tensors, torch.max, lambda layer, s: {f"{layer}.scale_weight": s, f"{layer}.scale_input": torch.tensor(1.0)}, dtype)
    stored.tensors[f"{prefix}scaled_fp8"] = torch.zeros(2, dtype=dtype)
    return stored


def comfy(tensors: Mapping[str, Tensor], *, marks: bool = True, dtype: torch.dtype = torch.float8_e4m3fn) -> Stored:
    """ComfyUI's newer convention; `marks` in the tensors, or a list in the metadata."""
    name = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}[dtype]
    mark = torch.tensor(list(json.dumps({"format": name}).encode()), dtype=torch.uint8)

    def beside(layer: str, scale: Tensor) -> Tensors:
        found = {f"{layer}.weight_scale": scale, f"{layer}.input_scale": torch.tensor(0.5)}
        return found | ({f"{layer}.comfy_quant": mark.clone()} if marks else {})

    stored = _fp8(tensors, torch.max, beside, dtype)
    if not marks:
        layers = {key.removesuffix(".weight"): {"format": name} for key in stored.values}
        stored.metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": layers})
    return stored


def sd_scripts(tensors: Mapping[str, Tensor], *, block: int | None = None) -> Stored:
    """sd-scripts' convention: a scale for every row, or for every `block` columns of a row."""

    def scale_of(weight: Tensor) -> Tensor:
        if block is None or weight.shape[1] % block:
            return weight.amax(dim=1, keepdim=True)
        return weight.reshape(weight.shape[0], -1, block).amax(dim=2, keepdim=True)

    return _fp8(tensors, scale_of, lambda layer, scale: {f"{layer}.scale_weight": scale}, torch.float8_e4m3fn)


def nf4(tensors: Mapping[str, Tensor], *, kind: str = "nf4", nested: bool = False, blocksize: int = 64) -> Stored:
    """bitsandbytes' 4-bit weights, as its layers put them into a state dict.

    They are dequantised as one row: bitsandbytes 0.50.2 is wrong on the CPU where blocks cross the ends of rows.
    """
    from bitsandbytes import functional

    stored = Stored(dict(tensors), {})
    for key, tensor in matrices(tensors).items():
        packed, state = functional.quantize_4bit(tensor, blocksize=blocksize, compress_statistics=nested, quant_type=kind)
        stored.tensors[key] = packed
        stored.tensors |= {f"{key}.{name}": value.clone() for name, value in state.as_dict(packed=True).items()}
        state.shape = torch.Size((1, tensor.numel()))
        stored.values[key] = functional.dequantize_4bit(packed, state).reshape(tensor.shape)
    return stored


def int8(tensors: Mapping[str, Tensor]) -> Stored:
    """torchao's int8 weights, flattened as diffusers does."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    state: dict[str, Any] = dict(tensors)
    values: Tensors = {}
    for key, tensor in matrices(tensors).items():
        layer = torch.nn.Linear(tensor.shape[1], tensor.shape[0], bias=False)
        layer.weight = torch.nn.Parameter(tensor, requires_grad=False)
        quantize_(layer, Int8WeightOnlyConfig())
        state[key] = layer.weight.data
        weight: Any = layer.weight
        values[key] = weight.dequantize(torch.float32)
    flat, metadata = flatten_tensor_state_dict(state)
    return Stored(flat, values, {"format": "pt", **metadata})


def random_blocks(name: str, shape: tuple[int, ...], seed: int = 0) -> "np.ndarray[Any, Any]":
    """Bytes of whole blocks whose scales are finite: random ones, drawn again where a value is not."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType[name]
    block, width = GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (int(np.prod(shape)) // block, width), dtype=np.uint8)
    with np.errstate(all="ignore"):
        while len(bad := np.flatnonzero(~np.isfinite(dequantize(blocks, kind)).all(axis=1))):
            blocks[bad] = random.integers(0, 256, (len(bad), width), dtype=np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def gguf_file(
    file: Path, tensors: Mapping[str, Tensor], kind: str = "Q8_0", *, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Tensors:
    """A GGUF file by the gguf package: matrices as `kind` (random bytes where the package cannot quantise), the rest F32.

    `shapes` are kept as original shapes, as ComfyUI-GGUF does. Gives the values by gguf.quants.dequantize.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import dequantize, quantize

    writer = GGUFWriter(file, "flux")
    values: Tensors = {}
    for key, tensor in tensors.items():
        if key in matrices(tensors):
            number = GGMLQuantizationType[kind]
            try:
                data = quantize(tensor.float().numpy(), number)
            except NotImplementedError:
                data = random_blocks(kind, tuple(tensor.shape))
            writer.add_tensor(key, data, raw_dtype=number)
            with np.errstate(all="ignore"):
                values[key] = torch.from_numpy(dequantize(data, number).astype(np.float32)).reshape(tensor.shape)
        else:
            writer.add_tensor(key, tensor.float().numpy())
    for key, shape in (shapes or {}).items():
        writer.add_array(f"comfy.gguf.orig_shape.{key}", list(shape))
        values[key] = values[key].reshape(shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values
