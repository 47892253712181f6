"""Tiny Stable Diffusion pipelines: stock diffusers and transformers classes with random weights, saved as folders."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false, reportArgumentType=false
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["PIPELINES", "TinyPipeline", "pipeline_tensors", "save_pipeline", "true_shapes", "with_text_model"]

_FOUR = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4


def _unet15(**changes: Any) -> "nn.Module":
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**{"cross_attention_dim": 768, "attention_head_dim": 8, **changes})


def _unetxl(**changes: Any) -> "nn.Module":
    from diffusers import UNet2DConditionModel

    config = {
        "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10), "cross_attention_dim": 2048,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }  # fmt: skip
    return UNet2DConditionModel(**{**config, **changes})


def _vae(**changes: Any) -> "nn.Module":
    from diffusers import AutoencoderKL

    down, up = _FOUR
    config = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
    return AutoencoderKL(down_block_types=down, up_block_types=up, **{**config, **changes})


def _sd3(**changes: Any) -> "nn.Module":
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(**{"joint_attention_dim": 4096, "pooled_projection_dim": 2048, "out_channels": 16, **changes})


def _clip(width: int, layers: int, heads: int, **changes: Any) -> "nn.Module":
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(_clip_config(CLIPTextConfig, width, layers, heads, changes))


def _clip_projected(width: int, layers: int, heads: int, **changes: Any) -> "nn.Module":
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(_clip_config(CLIPTextConfig, width, layers, heads, {"projection_dim": width, **changes}))


def _clip_config(kind: Any, width: int, layers: int, heads: int, changes: Mapping[str, Any]) -> Any:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return kind(**{**sizes, **changes})


def _t5(width: int, layers: int, heads: int, **changes: Any) -> "nn.Module":
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": width, "d_ff": 5 * width // 2, "d_kv": 64, "num_layers": layers, "num_heads": heads}
    return T5EncoderModel(T5Config(**{**sizes, "feed_forward_proj": "gated-gelu", **changes}))


Parts = dict[str, Callable[[], "nn.Module"]]


@dataclass(frozen=True)
class TinyPipeline:
    """A family: its pipeline class, its original layout, builders of its published components and of small ones.

    `mecha` is what sd-mecha calls its all-in-one file.
    """

    family: str
    kind: str
    original: str
    true: Parts
    tiny: Parts
    mecha: str | None = None


_SMALL_UNET = {"cross_attention_dim": 24, "norm_num_groups": 4, "attention_head_dim": 4}
_SMALL_VAE = {"block_out_channels": (4, 8, 12, 12), "norm_num_groups": 4}
_SMALL_TEXT = {"vocab_size": 20, "max_position_embeddings": 7}
_SMALL_SD3 = {
    "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8, "joint_attention_dim": 24, "caption_projection_dim": 16,
    "pooled_projection_dim": 20, "pos_embed_max_size": 6, "sample_size": 8,
}  # fmt: skip
_SD3_VAE = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}


def _sd3_pipeline(mecha: str | None, true: Mapping[str, Any], tiny: Mapping[str, Any]) -> TinyPipeline:
    return TinyPipeline(
        "sd3", "StableDiffusion3Pipeline", "sgm",
        {
            "transformer": lambda: _sd3(**true), "text_encoder": lambda: _clip_projected(768, 12, 12),
            "text_encoder_2": lambda: _clip_projected(1280, 32, 20), "text_encoder_3": lambda: _t5(4096, 24, 64),
            "vae": lambda: _vae(**_SD3_VAE),
        },
        {
            "transformer": lambda: _sd3(**_SMALL_SD3, **tiny), "text_encoder": lambda: _clip_projected(8, 2, 2, **_SMALL_TEXT),
            "text_encoder_2": lambda: _clip_projected(12, 3, 2, **_SMALL_TEXT),
            "text_encoder_3": lambda: _t5(24, 2, 2, vocab_size=20), "vae": lambda: _vae(**_SD3_VAE, **_SMALL_VAE),
        },
        mecha,
    )  # fmt: skip


def _medium(size: int) -> dict[str, Any]:
    return {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": size}


_LARGE = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192, "qk_norm": "rms_norm"}

PIPELINES: dict[str, TinyPipeline] = {
    "sd15": TinyPipeline(
        "sd15", "StableDiffusionPipeline", "ldm",
        {"unet": _unet15, "text_encoder": lambda: _clip(768, 12, 12), "vae": _vae},
        {
            "unet": lambda: _unet15(block_out_channels=(8, 16, 24, 24), **_SMALL_UNET),
            "text_encoder": lambda: _clip(8, 2, 2, **_SMALL_TEXT), "vae": lambda: _vae(**_SMALL_VAE),
        },
        "sd1-ldm",
    ),
    "sdxl": TinyPipeline(
        "sdxl", "StableDiffusionXLPipeline", "sgm",
        {
            "unet": _unetxl, "text_encoder": lambda: _clip(768, 12, 12),
            "text_encoder_2": lambda: _clip_projected(1280, 32, 20), "vae": _vae,
        },
        {
            "unet": lambda: _unetxl(
                **{**_SMALL_UNET, "block_out_channels": (8, 16, 24), "attention_head_dim": (2, 4, 6)},
                projection_class_embeddings_input_dim=36,
            ),
            "text_encoder": lambda: _clip(8, 2, 2, **_SMALL_TEXT),
            "text_encoder_2": lambda: _clip_projected(12, 3, 2, projection_dim=16, **_SMALL_TEXT), "vae": lambda: _vae(**_SMALL_VAE),
        },
        "sdxl-sgm",
    ),
    "sd3 medium": _sd3_pipeline("sd3-comfyui", _medium(192), {}),
    "sd3.5 medium": _sd3_pipeline(
        None, {**_medium(384), "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))},
        {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
    ),
    "sd3.5 large": _sd3_pipeline(None, _LARGE, {"qk_norm": "rms_norm"}),
}  # fmt: skip


def _states(parts: Parts) -> "dict[str, dict[str, Tensor]]":
    """What a component's file holds: its state dict without T5's second name for the embedding."""
    return {part: {k: t for k, t in build().state_dict().items() if "embed_tokens" not in k} for part, build in parts.items()}


def true_shapes(pipeline: TinyPipeline) -> dict[str, tuple[int, ...]]:
    """The shapes of a published model by folder and name, from the stock classes without memory for them."""
    import torch

    with torch.device("meta"):
        states = _states(pipeline.true)
    return {f"{part}/{key}": tuple(tensor.shape) for part, state in states.items() for key, tensor in state.items()}


def save_pipeline(pipeline: TinyPipeline, folder: Path, seed: int) -> "dict[str, Tensor]":
    """A small pipeline with every tensor drawn from N(0, 1) in bf16; returns its tensors by folder and name."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    everything: dict[str, Tensor] = {}
    for part, build in pipeline.tiny.items():
        model = build()
        state = {k: t for k, t in model.state_dict().items() if "embed_tokens" not in k}
        state = {k: torch.randn(t.shape, generator=generator).to(torch.bfloat16) for k, t in state.items()}
        stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
        (folder / part).mkdir(parents=True)
        save_file(state, folder / part / f"{stem}.safetensors", metadata={"format": "pt"})
        if hasattr(model, "save_config"):
            model.save_config(folder / part)  # pyright: ignore[reportCallIssue]
        else:
            model.config.save_pretrained(folder / part)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        everything |= {f"{part}/{key}": tensor for key, tensor in state.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline.kind, "_diffusers_version": "0.36.0"}))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    return everything


def with_text_model(shapes: dict[str, tuple[int, ...]], family: str) -> dict[str, tuple[int, ...]]:
    """Names as on the Hub: transformers 5 has no `text_model.` in a text encoder without projection."""
    if family not in ("sd15", "sdxl"):
        return shapes
    return {re.sub(r"^text_encoder/(?!text_model)", "text_encoder/text_model.", key): shape for key, shape in shapes.items()}


def pipeline_tensors(folder: Path) -> "dict[str, Tensor]":
    """The tensors of a pipeline folder by folder and name."""
    from safetensors.torch import load_file

    return {f"{file.parent.name}/{key}": t for file in sorted(folder.glob("*/*.safetensors")) for key, t in load_file(file).items()}
