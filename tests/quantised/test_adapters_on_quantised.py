"""An adapter applied to a quantised model: values, plus delta, rounded again with fresh scales."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import fluxsmith as fs
from support.tiny_flux import TinyCheckpoints

STEM = "double_blocks.0.img_attn.qkv"


@pytest.fixture
def style(tmp_path: Path) -> tuple[Path, Tensor]:
    """A LoRA that makes one tensor four times as large, which old scales could not hold; its delta."""
    generator = torch.Generator().manual_seed(3)
    up, down = torch.randn(144, 4, generator=generator), torch.randn(4, 48, generator=generator)
    key = "lora_unet_" + STEM.replace(".", "_")
    save_file({f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}, tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors", up @ down


@pytest.mark.parametrize(
    ("dtype", "name", "most"),
    [
        ("fp8_scaled", "q.safetensors", 0.04),
        ("fp8_channel", "q.safetensors", 0.04),
        ("fp8_comfy", "q.safetensors", 0.04),
        ("q8_0", "q.gguf", 0.01),
    ],
)
def test_scales_are_fresh(dtype: str, name: str, most: float, tiny: TinyCheckpoints, style: tuple[Path, Tensor], tmp_path: Path) -> None:
    path, delta = style
    fs.merge(str(tiny.a), tmp_path / name, dtype=dtype)
    before = fs.load_state_dict(str(tmp_path / name), dtype="fp32")
    plan = fs.merge(fs.model(str(tmp_path / name), name="base") + fs.adapter(str(path)), tmp_path / f"out-{name}").plan
    assert plan.scheme == dtype
    after = fs.load_state_dict(str(tmp_path / f"out-{name}"), dtype="fp32")
    wanted = before[f"{STEM}.weight"] + delta
    assert float((after[f"{STEM}.weight"] - wanted).norm() / wanted.norm()) < most
    others = [key for key in before if key != f"{STEM}.weight"]
    assert all(float((after[key] - before[key]).norm()) <= 1e-6 * float(before[key].norm()) for key in others)
