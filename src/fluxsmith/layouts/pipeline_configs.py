"""The config.json of every component of a Stable Diffusion pipeline, from the shapes of its tensors.

They are wanted where a pipeline is written from an all-in-one file, which has none. What weights do not show (heads,
groups of norms, activations, scales of the latent) is that of the published models of the family; widths that those
numbers do not divide are no published ones, and get the nearest number that does.
"""

from collections.abc import Callable, Mapping, Sequence
from math import isqrt
from typing import Any

from fluxsmith.layouts.table import Dims

__all__ = ["component_configs"]

Config = dict[str, Any]

#: Scale and shift of the latent, and whether decoding needs float32.
_LATENT: dict[str, Config] = {
    "sd15": {"scaling_factor": 0.18215},
    "sdxl": {"scaling_factor": 0.13025, "force_upcast": True},
    "sd3": {"scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False, "use_post_quant_conv": False},
}


def _groups(widths: Sequence[int]) -> int:
    """Groups of a norm: 32, as everywhere, or the largest power of two that divides all widths."""
    return next((n for n in (32, 16, 8, 4, 2) if all(width % n == 0 for width in widths)), 1)


def _heads(width: int, size: int = 64) -> int:
    return width // size if width % size == 0 else 1


def _unet15(dims: Dims) -> Config:
    widths = [dims["C0"], dims["C1"], dims["C2"], dims["C2"]]
    return {
        **_unet(dims, widths),
        "attention_head_dim": 8,  # heads, for all the name says
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "sample_size": 64,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }


def _unetxl(dims: Dims) -> Config:
    widths = [dims["C0"], dims["C1"], dims["C2"]]
    return {
        **_unet(dims, widths),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "attention_head_dim": [_heads(width) for width in widths],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "projection_class_embeddings_input_dim": dims["added"],
        "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    }


def _unet(dims: Dims, widths: list[int]) -> Config:
    return {
        "_class_name": "UNet2DConditionModel",
        "block_out_channels": widths,
        "cross_attention_dim": dims["ctx"],
        "in_channels": dims["in"],
        "layers_per_block": 2,
        "norm_num_groups": _groups(widths),
        "out_channels": dims["out"],
    }


def _sd3(dims: Dims) -> Config:
    head = dims.get("D") or (64 if dims["H"] % 64 == 0 else dims["H"])
    return {
        "_class_name": "SD3Transformer2DModel",
        "attention_head_dim": head,
        "caption_projection_dim": dims["H"],
        "dual_attention_layers": list(range(dims["dual"])),
        "in_channels": dims["in"],
        "joint_attention_dim": dims["ctx"],
        "num_attention_heads": dims["H"] // head,
        "num_layers": dims["joint"],
        "out_channels": dims["out"] // 4,
        "patch_size": 2,
        "pooled_projection_dim": dims["vec"],
        "pos_embed_max_size": isqrt(dims["P"]),
        "qk_norm": "rms_norm" if dims.get("qk_norm") else None,
        "sample_size": 128,
    }


def _vae(dims: Dims, family: str) -> Config:
    widths = [dims["vae.width0"], dims["vae.width1"], dims["vae.width2"], dims["vae.width2"]]
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": dims["vae.image"],
        "latent_channels": dims["vae.z"],
        "layers_per_block": 2,
        "norm_num_groups": _groups(widths),
        "out_channels": dims["vae.image"],
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        **_LATENT[family],
    }


def _clip(dims: Dims, name: str) -> Config:
    width, projection = dims[f"{name}.width"], dims.get(f"{name}.projection")
    return {
        "architectures": ["CLIPTextModelWithProjection" if projection else "CLIPTextModel"],
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "gelu" if name == "clip_g" else "quick_gelu",
        "hidden_size": width,
        "intermediate_size": dims[f"{name}.mlp"],
        "max_position_embeddings": dims[f"{name}.positions"],
        "model_type": "clip_text_model",
        "num_attention_heads": _heads(width),
        "num_hidden_layers": dims[name],
        "pad_token_id": 1,
        "projection_dim": projection or width,
        "vocab_size": dims[f"{name}.vocabulary"],
    }


def _t5(dims: Dims) -> Config:
    return {
        "architectures": ["T5EncoderModel"],
        "d_ff": dims["t5.mlp"],
        "d_kv": dims["t5.attention"] // dims["t5.heads"],
        "d_model": dims["t5.width"],
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "model_type": "t5",
        "num_heads": dims["t5.heads"],
        "num_layers": dims["t5"],
        "pad_token_id": 0,
        "relative_attention_num_buckets": dims["t5.distances"],
        "vocab_size": dims["t5.vocabulary"],
    }


_DENOISERS: dict[str, tuple[str, Callable[[Dims], Config]]] = {
    "sd15": ("unet", _unet15), "sdxl": ("unet", _unetxl), "sd3": ("transformer", _sd3),
}  # fmt: skip
_FOLDERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "text_encoder_3", "vae": "vae"}


def component_configs(family: str, dims: Dims, components: Sequence[str]) -> Mapping[str, Config]:
    """Folder -> config.json of these components; nothing for a family that is no Stable Diffusion."""
    if family not in _DENOISERS:
        return {}
    denoiser, make = _DENOISERS[family]
    found: dict[str, Config] = {}
    for name in components:
        if name == denoiser:
            found[denoiser] = make(dims)
        elif name == "vae":
            found["vae"] = _vae(dims, family)
        else:
            found[_FOLDERS[name]] = _t5(dims) if name == "t5" else _clip(dims, name)
    return found
