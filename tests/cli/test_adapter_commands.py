"""`fluxsmith adapter inspect` and `convert`, as a user runs them."""

# pyright: reportMissingTypeStubs=false
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.cli_runs import run_cli


@pytest.fixture
def style(tmp_path: Path) -> Path:
    """kohya's LoRA of a double block's qkv, a single block's linear1 and the last modulation."""
    tensors: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(1)
    for name, rows, rank, alpha in (
        ("double_blocks_0_img_attn_qkv", 144, 4, 3.0), ("single_blocks_1_linear1", 336, 3, 1.5),
        ("final_layer_adaLN_modulation_1", 96, 2, 4.0),
    ):  # fmt: skip
        stem = f"lora_unet_{name}"
        tensors[f"{stem}.lora_down.weight"] = torch.randn(rank, 48, generator=generator)
        tensors[f"{stem}.lora_up.weight"] = torch.randn(rows, rank, generator=generator)
        tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    file = tmp_path / "style.safetensors"
    save_file(tensors, file, {"ss_output_name": "style", "modelspec.trigger_phrase": "ohwx"})
    return file


def test_inspect(style: Path) -> None:
    run = run_cli("adapter", "inspect", str(style))
    assert run.code == 0
    for text in (
        "adapter for flux1",
        "kohya, score 1.00",
        "bfl (transformer)",
        "double 0; single 1; final_layer",
        "alpha over rank",
        "ohwx",
    ):
        assert text in run.out
    assert run.out == run_cli("inspect", str(style)).out.partition("\n\nfluxsmith adapter inspect")[0] + "\n"


def test_inspect_as_data(style: Path) -> None:
    data = json.loads(run_cli("adapter", "inspect", str(style), "--stats", "--json").out)
    assert (data["dialect"], data["family"], data["score"], data["error"]) == ("kohya", "flux1", 1.0, None)
    assert data["groups"][0] == {
        "algorithm": "lora",
        "kind": "double",
        "modules": 1,
        "rank": [4, 4],
        "alpha": [3.0, 3.0],
        "scale": [0.75, 0.75],
    }
    tensors = load_file(style)
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    norm = float((0.75 * tensors[f"{stem}.lora_up.weight"] @ tensors[f"{stem}.lora_down.weight"]).norm())
    assert data["norms"]["double.0"] == pytest.approx(norm, rel=1e-5)


def test_what_is_wrong_is_a_field(style: Path) -> None:
    tensors = load_file(style)
    del tensors["lora_unet_single_blocks_1_linear1.lora_up.weight"]
    save_file(tensors, style)
    run = run_cli("adapter", "inspect", str(style))
    assert run.code == 0
    assert "error[adapter." in run.out and "single_blocks_1_linear1" in run.out
    data = json.loads(run_cli("adapter", "inspect", str(style), "--json").out)
    assert data["error"]["code"].startswith("adapter.")
    assert data["modules"] == 0


def test_convert_there_and_back(style: Path, tmp_path: Path) -> None:
    there = run_cli("adapter", "convert", str(style), "-o", str(tmp_path / "d.safetensors"), "--to", "diffusers", "--json")
    assert there.code == 0, there.err
    data = json.loads(there.out)
    assert (data["from"], data["to"], data["modules"], data["ways"]) == ("kohya", "diffusers", 8, {"cut": 8})
    back = run_cli("adapter", "convert", str(tmp_path / "d.safetensors"), "-o", str(tmp_path / "k.safetensors"), "--to", "kohya")
    assert back.code == 0, back.err
    assert "diffusers -> kohya: 3 modules" in back.out
    first, last = load_file(style), load_file(tmp_path / "k.safetensors")
    assert first.keys() == last.keys()
    assert all(torch.equal(first[key], last[key]) for key in first)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--to", "kohia"], 2, "did you mean `kohya`"),
        (["--to", "kohya-oft"], 2, "is read, but not written"),
        (["--to", "xlabs"], 4, "has no place for"),
        (["--to", "diffusers", "--as", "diff"], 4, "cannot hold"),
        (["--to", "kohya", "--rank", "3", "--energy", "0.5"], 2, "exclude each other"),
        (["--to", "kohya", "--components", "clip_l"], 4, "changes no tensor"),
    ],
)
def test_refusals_leave_nothing(style: Path, tmp_path: Path, arguments: list[str], code: int, text: str) -> None:
    run = run_cli("adapter", "convert", str(style), "-o", str(tmp_path / "out.safetensors"), *arguments)
    assert run.code == code, run.err
    assert text in run.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["style.safetensors"]
