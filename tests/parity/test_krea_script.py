"""The Krea merge script (schnell and Krea-dev, half and half, in diffusers' layout) and the preset that takes its place.

The script reads both checkpoints shard by shard, averages every tensor in bf16, takes keys with `guidance` from schnell
where schnell has them, and writes the result under schnell's config. Schnell has none, so Krea's are left out.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fluxsmith as fs
from support.tiny_flux import make_transformer, save_diffusers, tensors_of


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make_transformer(11, guidance_embeds=False)
    return save_diffusers(model, tmp_path_factory.mktemp("schnell") / "transformer")


@pytest.fixture(scope="module")
def krea(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_diffusers(make_transformer(12), tmp_path_factory.mktemp("krea") / "transformer")


@pytest.fixture(scope="module")
def preset(schnell: Path, krea: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of `fluxsmith merge --preset flux-krea-schnell` on both."""
    from support.cli_runs import run_cli

    out = tmp_path_factory.mktemp("merged") / "transformer"
    done = run_cli("merge", "--preset", "flux-krea-schnell", "-m", f"schnell={schnell}", "-m", f"krea={krea}", "-o", out)
    assert done.code == 0, done.err
    return out


def script(schnell: dict[str, Tensor], krea: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the script computes, key by key."""
    result: dict[str, Tensor] = {}
    for key in schnell.keys() | krea.keys():
        if "guidance" in key:
            if key in schnell:
                result[key] = schnell[key]
        else:
            result[key] = (schnell[key] + krea[key]) / 2
    return result


def test_every_bit_is_the_same(schnell: Path, krea: Path, preset: Path) -> None:
    expected = script(tensors_of(schnell), tensors_of(krea))
    found = tensors_of(preset)
    assert found.keys() == expected.keys()
    assert all(t.dtype == torch.bfloat16 for t in found.values())
    assert [key for key in found if not torch.equal(found[key].view(torch.int16), expected[key].view(torch.int16))] == []


def test_it_is_a_schnell_shaped_model(schnell: Path, preset: Path) -> None:
    assert not any("guidance" in key for key in tensors_of(preset))
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (preset, schnell))
    assert ours["guidance_embeds"] is False
    assert {key: ours[key] for key in theirs if key in ours and not key.startswith("_")} == {
        key: theirs[key] for key in theirs if key in ours and not key.startswith("_")
    }


def test_stock_diffusers_loads_it(preset: Path) -> None:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    model = FluxTransformer2DModel.from_pretrained(preset, torch_dtype=torch.bfloat16)
    found = tensors_of(preset)
    assert all(torch.equal(found[key], parameter) for key, parameter in model.state_dict().items())


def test_shards_may_be_cut_elsewhere(schnell: Path, preset: Path, tmp_path: Path) -> None:
    """The script pairs shards by number and fails on checkpoints that are cut differently; keys are paired here."""
    krea = save_diffusers(make_transformer(12), tmp_path / "krea", shard_size="40KB")
    assert len(list(krea.glob("*.safetensors"))) != len(list(schnell.glob("*.safetensors")))
    fs.merge(fs.weighted_sum(str(schnell), str(krea)), tmp_path / "out", guidance="drop", dtype="bf16")
    found, expected = tensors_of(tmp_path / "out"), tensors_of(preset)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
