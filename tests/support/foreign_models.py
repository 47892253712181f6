"""Files of other kinds than FLUX.1 transformers, small, with the names that real ones have."""

# pyright: reportMissingTypeStubs=false
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FOREIGN_MODELS", "save_foreign"]


def _zeros(**shapes: tuple[int, ...]) -> "dict[str, Tensor]":
    import torch

    return {key: torch.zeros(shape, dtype=torch.bfloat16) for key, shape in shapes.items()}


def _chroma() -> "dict[str, Tensor]":
    from diffusers.models.transformers.transformer_chroma import ChromaTransformer2DModel

    return ChromaTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=3, attention_head_dim=24, num_attention_heads=2, joint_attention_dim=32,
        axes_dims_rope=(8, 8, 8), approximator_hidden_dim=16, approximator_layers=2,
    ).state_dict()  # fmt: skip


def _flux2() -> "dict[str, Tensor]":
    from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel

    return Flux2Transformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=3, attention_head_dim=24, num_attention_heads=2, joint_attention_dim=32,
        timestep_guidance_channels=16, axes_dims_rope=(8, 8, 4, 4),
    ).state_dict()  # fmt: skip


def _flux2_bfl() -> "dict[str, Tensor]":
    """FLUX.2 under Black Forest Labs' names, which share `double_blocks.N.img_attn.qkv` with FLUX.1."""
    block = {f"double_blocks.{i}.img_attn.qkv.weight": (144, 48) for i in range(2)}
    single = {f"single_blocks.{i}.linear1.weight": (432, 48) for i in range(3)}
    shared = {"single_stream_modulation.lin.weight": (144, 48), "img_in.weight": (48, 16), "txt_in.weight": (48, 32)}
    return _zeros(**block, **single, **shared)


def _controlnet() -> "dict[str, Tensor]":
    from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel

    return FluxControlNetModel(
        in_channels=16, num_layers=2, num_single_layers=3, attention_head_dim=24, num_attention_heads=2, joint_attention_dim=32,
        pooled_projection_dim=24, axes_dims_rope=[8, 8, 8],
    ).state_dict()  # fmt: skip


def _vae() -> "dict[str, Tensor]":
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).state_dict()


def _lora(stem: str, down: str, up: str) -> "dict[str, Tensor]":
    names = {stem.format(i) for i in range(2)}
    return _zeros(**{f"{name}.{down}.weight": (4, 48) for name in names}, **{f"{name}.{up}.weight": (48, 4) for name in names})


def _redux() -> "dict[str, Tensor]":
    return _zeros(**{"redux_up.weight": (96, 16), "redux_up.bias": (96,), "redux_down.weight": (32, 96), "redux_down.bias": (32,)})


def _ip_adapter() -> "dict[str, Tensor]":
    processor = "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight"
    return _zeros(**{"ip_adapter_proj_model.proj.weight": (32, 16), processor: (48, 32)})


def _lokr() -> "dict[str, Tensor]":
    stem = "lycoris_transformer_blocks_0_attn_to_q"
    return _zeros(**{f"{stem}.lokr_w1": (4, 4), f"{stem}.lokr_w2": (12, 12)})


def _sdxl() -> "dict[str, Tensor]":
    text = "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight"
    return _zeros(**{text: (8,), "model.diffusion_model.label_emb.0.0.weight": (8, 8)})


FOREIGN_MODELS: dict[str, "Callable[[], dict[str, Tensor]]"] = {
    "chroma": _chroma,
    "flux2": _flux2,
    "flux2-bfl": _flux2_bfl,
    "controlnet": _controlnet,
    "vae": _vae,
    "redux": _redux,
    "ip-adapter": _ip_adapter,
    "lora-diffusers": lambda: _lora("transformer.single_transformer_blocks.{}.attn.to_q", "lora_A", "lora_B"),
    "lora-kohya": lambda: _lora("lora_unet_double_blocks_{}_img_attn_qkv", "lora_down", "lora_up"),
    "lokr": _lokr,
    "sdxl": _sdxl,
}


def save_foreign(kind: str, file: Path) -> Path:
    """A file of one of FOREIGN_MODELS."""
    from safetensors.torch import save_file

    save_file({key: tensor.contiguous() for key, tensor in FOREIGN_MODELS[kind]().items()}, file)
    return file
