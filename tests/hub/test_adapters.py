"""Adapters on the Hub: what stands beside the tensors comes with them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fluxsmith.io.references import open_reference

from .server import HubServer

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 3}


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize("path", ["", ":adapter_model.safetensors"])
def test_a_peft_repository_is_opened_with_its_config(hub: HubServer, tmp_path: Path, path: str, download: bool) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    save_file({"base_model.model.proj_out.lora_A.weight": torch.zeros(2, 4)}, folder / "adapter_model.safetensors")
    save_file({"step": torch.zeros(1)}, folder / "training_state.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    hub.add("someone/style", folder)
    found = open_reference(f"someone/style{path}", download=download)
    assert found.adapter_config == CONFIG
    assert list(found.tensors) == ["base_model.model.proj_out.lora_A.weight"]


def test_the_file_that_diffusers_saves_is_taken_among_others(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    save_file({"transformer.proj_out.lora_A.weight": torch.zeros(2, 4)}, folder / "pytorch_lora_weights.safetensors")
    save_file({"step": torch.zeros(1)}, folder / "training_state.safetensors")
    hub.add("someone/style", folder)
    assert list(open_reference("someone/style", download=False).tensors) == ["transformer.proj_out.lora_A.weight"]
