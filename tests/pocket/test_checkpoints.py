import json

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors import safe_open

from fluxsmith.hub import pocket_folder
from fluxsmith.pocket.checkpoints import CHECKPOINTS


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_committed_weights_are_stock_small_and_bf16(name: str) -> None:
    folder = pocket_folder() / name
    transformer = FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer", local_files_only=True)
    assert transformer.config.guidance_embeds == (name == "dev")
    assert sum(p.numel() for p in transformer.parameters()) < 1_000_000
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    assert file.stat().st_size < 2_000_000
    with safe_open(file, "pt") as tensors:
        assert {tensors.get_tensor(key).dtype for key in tensors.keys()} == {torch.bfloat16}  # noqa: SIM118
        assert set(tensors.keys()) == set(transformer.state_dict())


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_folder_holds_a_measured_card_and_no_path(name: str) -> None:
    folder = pocket_folder() / name
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"| {name}" in card
    assert "Not measured" not in card
    assert not [key for key in json.loads((folder / "transformer" / "config.json").read_text()) if key == "_name_or_path"]
