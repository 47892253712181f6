"""Tiny all-in-one files of FLUX.1 from stock classes: text encoders of transformers, a VAE of diffusers, each in a type of its own."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false, reportPrivateImportUsage=false, reportArgumentType=false
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fluxsmith as fs
from support.tiny_flux import tensors_of

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["PLACES", "AllInOne", "clip_model", "prefixed", "random_state", "save_all_in_one", "t5_model", "vae_model"]

Tensors = dict[str, "Tensor"]
#: What ComfyUI writes before the keys of each component.
PLACES = {
    "transformer": "model.diffusion_model.", "clip_l": "text_encoders.clip_l.transformer.", "t5": "text_encoders.t5xxl.transformer.",
    "vae": "vae.",
}  # fmt: skip


@dataclass(frozen=True)
class AllInOne:
    """The components' own files, and the one that holds all of them."""

    transformer: Path
    clip_l: Path
    t5: Path
    vae: Path
    whole: Path

    @property
    def parts(self) -> dict[str, Path]:
        return {name: getattr(self, name) for name in PLACES}


def clip_model(seed: int) -> "nn.Module":
    """CLIP of width 8 with two layers."""
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": 8, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"vocab_size": 20, "max_position_embeddings": 7, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    return _drawn(CLIPTextModel(CLIPTextConfig(**sizes, **words)), seed)


def t5_model(seed: int) -> "nn.Module":
    """T5's encoder of width 16 with two blocks."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(d_model=16, d_ff=40, d_kv=8, num_layers=2, num_heads=2, vocab_size=20, feed_forward_proj="gated-gelu")
    return _drawn(T5EncoderModel(config), seed)


def vae_model(seed: int) -> "nn.Module":
    """FLUX.1's VAE with small widths."""
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    sizes = {"block_out_channels": (4, 8, 12, 12), "norm_num_groups": 4, "layers_per_block": 2, "latent_channels": 16}
    return _drawn(AutoencoderKL(**blocks, **sizes, use_quant_conv=False, use_post_quant_conv=False), seed)


def _drawn(model: Any, seed: int) -> "nn.Module":
    """The model with every parameter drawn from N(0, 0.3)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def random_state(model: "nn.Module") -> Tensors:
    """A model's tensors without T5's second name for its embedding, CLIP's under the names of its published files."""
    state = {key: tensor.detach().clone() for key, tensor in model.state_dict().items() if "embed_tokens" not in key}
    clip = any(key.startswith("embeddings.") for key in state)
    return {f"text_model.{key}" if clip else key: tensor for key, tensor in state.items()}


def prefixed(place: str, tensors: Tensors) -> Tensors:
    return {f"{place}{key}": tensor for key, tensor in tensors.items()}


def scaled_fp8(tensors: Tensors) -> Tensors:
    """T5's matrices in fp8, each with its scale, as ComfyUI's scaled files have them."""
    import torch

    stored: Tensors = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for key, tensor in tensors.items():
        if tensor.dim() == 2 and "layer" in key and "relative" not in key:
            scale = tensor.abs().max() / 448
            stored[key] = (tensor / scale).to(torch.float8_e4m3fn)
            stored[f"{key.removesuffix('weight')}scale_weight"] = scale.reshape(())
        else:
            stored[key] = tensor.to(torch.float16)
    return stored


def save_all_in_one(root: Path, transformer: Path, *, seed: int = 0, scaled: bool = False) -> AllInOne:
    """Components in bf16, fp16, fp8 (with scales where `scaled`) and fp32, in their own files and in one."""
    import torch
    from safetensors.torch import save_file

    root.mkdir(parents=True, exist_ok=True)
    t5 = random_state(t5_model(seed + 2))
    parts: dict[str, Tensors] = {
        "transformer": tensors_of(transformer),
        "clip_l": {key: tensor.half() for key, tensor in random_state(clip_model(seed + 1)).items()},
        "t5": scaled_fp8(t5) if scaled else {key: tensor.to(torch.float8_e4m3fn) for key, tensor in t5.items()},
    }
    paths = {name: root / f"{name}.safetensors" for name in PLACES}
    save_file(random_state(vae_model(seed + 3)), root / "vae-diffusers.safetensors")
    fs.merge(str(root / "vae-diffusers.safetensors"), paths["vae"], layout="ldm")
    parts["vae"] = tensors_of(paths["vae"])
    for name, tensors in parts.items():
        if name != "vae":
            save_file(tensors, paths[name])
    whole = {key: tensor for name, place in PLACES.items() for key, tensor in prefixed(place, parts[name]).items()}
    save_file(whole, root / "whole.safetensors", metadata={"format": "pt"})
    return AllInOne(**paths, whole=root / "whole.safetensors")
