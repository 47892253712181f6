"""Checkpoints written by stock diffusers, repositories made of them, and a Hub that serves these."""

import json
import shutil
from collections.abc import Generator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from safetensors.torch import save_file

from .server import HubServer


@pytest.fixture(scope="session")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock transformer of some 30 MB in three shards: large beside its headers, as the real ones are."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=False,
        axes_dims_rope=(16, 24, 24),
    )
    folder = tmp_path_factory.mktemp("stock") / "transformer"
    model.save_pretrained(folder, max_shard_size="12MB")
    return folder


@pytest.fixture(scope="session")
def pipeline(transformer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository like FLUX.1's own: a pipeline, and single files at the root that must not be taken."""
    folder = tmp_path_factory.mktemp("repositories") / "pipeline"
    shutil.copytree(transformer, folder / "transformer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    (folder / "text_encoder").mkdir()
    save_file({"embedding": torch.zeros(8, 8)}, folder / "text_encoder" / "model.safetensors")
    save_file({"img_in.weight": torch.ones(8, 8)}, folder / "flux1-dev.safetensors", metadata={"kind": "dev"})
    save_file({"decoder": torch.ones(4)}, folder / "ae.safetensors")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[HubServer]:
    """An empty Hub that HF_ENDPOINT names, with an empty cache, nobody logged in, and no other host in reach."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    # with telemetry, the first request is preceded by one to the endpoint that was known at import
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
