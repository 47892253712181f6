"""Converting adapters of other families: Stable Diffusion's U-Net and text encoders, FLUX.2, Chroma; names that their loaders know."""

# pyright: reportMissingTypeStubs=false
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fluxsmith.adapters.converting.files import convert
from fluxsmith.adapters.dialects import DIALECTS
from fluxsmith.adapters.module import Adapter
from fluxsmith.adapters.reading.opening import open_adapter
from fluxsmith.adapters.tensors import delta_of, read_module
from fluxsmith.io.references import open_reference

TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
UNET = "down_blocks.1.attentions.0"
CASES: dict[str, tuple[dict[str, tuple[int, ...]], set[str]]] = {
    "sd15": (
        {
            f"unet.{UNET}.transformer_blocks.0.attn1.to_q": (64, 64), "unet.down_blocks.1.resnets.0.conv1": (64, 32, 3, 3),
            f"text_encoder.{TEXT}": (16, 16),
        },
        {f"lora_unet_{UNET}_transformer_blocks_0_attn1_to_q", "lora_unet_down_blocks_1_resnets_0_conv1", f"lora_te_{TEXT}"},
    ),
    "sdxl": (
        {
            f"unet.{UNET}.transformer_blocks.1.attn1.to_q": (64, 64), "unet.mid_block.attentions.0.proj_in": (128, 128),
            f"text_encoder.{TEXT}": (16, 16), f"text_encoder_2.{TEXT}": (24, 24),
        },
        {
            "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", "lora_unet_middle_block_1_proj_in",
            f"lora_te1_{TEXT}", f"lora_te2_{TEXT}",
        },
    ),
    "flux2": (
        {"transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj": (432, 48), "transformer.transformer_blocks.1.attn.to_k": (48, 48)},
        {"lora_unet_single_blocks_0_linear1", "lora_unet_double_blocks_1_img_attn_qkv"},
    ),
    "chroma": (
        {"transformer.distilled_guidance_layer.layers.0.linear_1": (32, 32), "transformer.transformer_blocks.0.attn.add_v_proj": (48, 48)},
        {"lora_unet_distilled_guidance_layer_layers_0_in_layer", "lora_unet_double_blocks_0_txt_attn_qkv"},
    ),
}  # fmt: skip


def lora(shapes: dict[str, tuple[int, ...]], file: Path) -> Path:
    """diffusers' LoRA without alpha; of a convolution `up` is one of 1 x 1."""
    generator, tensors = torch.Generator().manual_seed(2), dict[str, Tensor]()
    for rank, (name, (rows, *trailing)) in enumerate(shapes.items(), 2):
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, *trailing, generator=generator)
        tensors[f"{name}.lora_B.weight"] = torch.randn(rows, rank, *(1 for _ in trailing[1:]), generator=generator)
    save_file(tensors, file)
    return file


def changed_rows(adapter: Adapter) -> dict[tuple[str, int], Tensor]:
    """Every row of every canonical tensor that is changed."""
    found: dict[tuple[str, int], Tensor] = {}
    for module in adapter.modules:
        delta = delta_of(read_module(module))
        for span in module.target.spans:
            rows = delta[span.at : span.at + span.rows].flatten(1)
            found |= {(module.target.tensor, span.start + i): row for i, row in enumerate(rows) if row.any()}
    return found


@pytest.mark.parametrize("family", CASES)
def test_there_and_back(family: str, tmp_path: Path) -> None:
    shapes, stems = CASES[family]
    adapter = open_adapter(open_reference(str(lora(shapes, tmp_path / "source.safetensors")), download=False))
    assert adapter.family == family
    expected = changed_rows(adapter)
    for dialect in ("kohya", "comfy", "diffusers"):
        file = tmp_path / f"{dialect}.safetensors"
        convert(adapter, file, DIALECTS[dialect])
        table_is_told = dialect == "diffusers" or family != "flux2"  # FLUX.2's fused names are those of FLUX.1, too
        again = open_adapter(open_reference(str(file), download=False))
        assert (again.family == family) or not table_is_told
        found = changed_rows(again)
        assert found.keys() == expected.keys()
        assert all(torch.allclose(found[key], expected[key], rtol=1e-6, atol=0) for key in expected)
    assert {key.partition(".")[0] for key in load_file(tmp_path / "kohya.safetensors")} == {stem.replace(".", "_") for stem in stems}
