"""Quantised checkpoints on the Hub: what their headers tell, and what only a download does."""

from pathlib import Path

import pytest
import torch

import fluxsmith as fs
from fluxsmith.analysis.inspection import inspect
from fluxsmith.errors import FileError
from fluxsmith.io.opening import open_checkpoint
from fluxsmith.io.references import FIRST_READ, open_reference
from quantised.producers import comfy, gguf_file, nf4
from support.cli_runs import run_cli

from .server import HubServer

REPO = "someone/quantised"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file and two quantised safetensors files, a megabyte each."""
    folder = tmp_path_factory.mktemp("quantised")
    weights = {f"l{i}.weight": torch.randn(256, 1024).bfloat16() for i in range(6)}
    gguf_file(folder / "model-Q8_0.gguf", weights)
    comfy(weights).save(folder / "fp8.safetensors")
    nf4(weights).save(folder / "nf4.safetensors")
    return folder


def test_a_gguf_is_opened_by_its_header_alone(hub: HubServer, repository: Path) -> None:
    hub.add(REPO, repository)
    found = open_reference(f"{REPO}:model-Q8_0.gguf", download=False)
    local = open_checkpoint(repository / "model-Q8_0.gguf")
    assert found.tensors.keys() == local.tensors.keys()
    for key, view in local.tensors.items():
        remote, here = found.tensors[key].extents[0], view.extents[0]
        assert (remote.offset, remote.count, remote.codec) == (here.offset, here.count, here.codec)
    assert 0 < sum(hub.sent.values()) < FIRST_READ + 20_000
    assert found.files[0].remote is not None
    fetched = open_reference(f"{REPO}:model-Q8_0.gguf", download=True)
    assert fetched.files[0].remote is None
    assert torch.equal(*(fs.load_state_dict(c.files[0].path)["l3.weight"] for c in (fetched, local)))


def test_scaled_fp8_is_planned_without_a_download(hub: HubServer, repository: Path) -> None:
    hub.add(REPO, repository)
    plan = fs.plan(f"{REPO}:fp8.safetensors", dtype="bf16")
    assert plan.inputs[0].dtypes == ("F8_E4M3",)


def test_what_stands_in_tensors_needs_a_download(hub: HubServer, repository: Path) -> None:
    """The shapes of NF4 weights are in their tensors; inspect shows what the header has, without refusing a merge."""
    hub.add(REPO, repository)
    with pytest.raises(FileError) as caught:
        fs.plan(f"{REPO}:nf4.safetensors")
    assert caught.value.code == "file.needs-download"
    assert "l0.weight.quant_state" in caught.value.facts["key"]
    found = inspect(f"{REPO}:nf4.safetensors")
    assert found.refused is None
    assert found.quantised == "bitsandbytes 4-bit"
    assert run_cli("inspect", f"{REPO}:nf4.safetensors").code == 0
