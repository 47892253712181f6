"""torchao's int8 in a diffusers folder: loaded and run by stock diffusers, the numbers those of torchao itself."""

# pyright: reportUnknownMemberType=false
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig, quantize_

import fluxsmith as fs
from fluxsmith.errors import UsageError
from fluxsmith.reports.card import card_files
from support.tiny_flux import make_transformer, save_diffusers, tensors_of
from support.wide_flux import WIDTH_64, Wide, flux_inputs


def in_a_block(name: str) -> bool:
    return "transformer_blocks." in name


@pytest.mark.parametrize("shard_size", [None, "100KB"])
def test_diffusers_loads_and_runs_what_torchao_would_have_made(shard_size: str | None, tmp_path: Path) -> None:
    model = make_transformer(1, **WIDTH_64).float()
    save_diffusers(model, tmp_path / "fp32")
    fs.merge(str(tmp_path / "fp32"), tmp_path / "int8", dtype="int8_torchao", shard_size=shard_size)
    assert (len(list((tmp_path / "int8").glob("*.safetensors"))) > 1) == (shard_size is not None)
    loaded = FluxTransformer2DModel.from_pretrained(tmp_path / "int8", torch_dtype=torch.float32)
    quantize_(model, Int8WeightOnlyConfig(), lambda module, name: isinstance(module, torch.nn.Linear) and in_a_block(name))
    compared = 0
    expected, found = dict(model.named_parameters()), dict(loaded.named_parameters())
    assert set(found) == set(expected)
    for name, weight in expected.items():
        if isinstance(weight, Int8Tensor):
            other: Any = found[name]
            assert type(other) is Int8Tensor, name
            assert torch.equal(weight.qdata, other.qdata)
            assert torch.equal(weight.scale, other.scale)
            assert other.zero_point is not None
            assert not other.zero_point.any()
            compared += 1
        else:
            assert torch.equal(weight, found[name])
    assert compared == 2 * 14 + 3 * 6
    with torch.no_grad():
        assert torch.allclose(model(**flux_inputs()).sample, loaded(**flux_inputs()).sample, atol=1e-4)


def test_config_and_metadata_are_those_that_diffusers_saves(wide: Wide, tmp_path: Path) -> None:
    from diffusers import TorchAoConfig
    from safetensors import safe_open

    theirs = FluxTransformer2DModel.from_pretrained(
        wide.folder, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()), torch_dtype=torch.bfloat16
    )
    theirs.save_pretrained(tmp_path / "theirs")
    fs.merge(str(wide.folder), tmp_path / "ours", dtype="int8_torchao")
    config = [json.loads((tmp_path / who / "config.json").read_text())["quantization_config"] for who in ("theirs", "ours")]
    assert config[0] == config[1]
    saved: list[dict[str, str]] = []
    for who in ("theirs", "ours"):
        with safe_open(tmp_path / who / "diffusion_pytorch_model.safetensors", "pt") as file:
            saved.append(file.metadata())
    names = json.loads(saved[1]["tensor_names"])
    assert set(names) == set(json.loads(saved[0]["tensor_names"]))
    assert all(json.loads(saved[0][name]) == json.loads(saved[1][name]) for name in names if in_a_block(name))
    shapes = [{key: (t.dtype, t.shape) for key, t in tensors_of(tmp_path / who).items() if in_a_block(key)} for who in ("theirs", "ours")]
    assert shapes[0] == shapes[1]


def test_it_needs_a_diffusers_folder(wide: Wide, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int8_torchao needs a diffusers folder") as error:
        fs.merge(str(wide.file), tmp_path / "out.safetensors", dtype="int8_torchao")
    assert str(tmp_path / "out") in str(error.value.fix)
    with pytest.raises(UsageError, match="has the diffusers layout, not bfl"):
        fs.merge(str(wide.file), tmp_path / "out", dtype="int8_torchao", layout="bfl")


def test_the_card_of_one_quantised_model_says_that_it_is_one(wide: Wide, tmp_path: Path) -> None:
    for dtype, relation in (("int8_torchao", "quantized"), ("bf16", "merge")):
        plan = fs.plan(str(wide.file), output=tmp_path / "out", dtype=dtype, layout="diffusers")
        published = replace(plan, inputs=(replace(plan.inputs[0], reference="org/base"),))
        assert f"base_model_relation: {relation}\n" in card_files(published)["README.md"]


def test_made_plain_again_nothing_says_that_it_is_quantised(wide: Wide, tmp_path: Path) -> None:
    fs.merge(str(wide.file), tmp_path / "int8", dtype="int8_torchao")
    fs.merge(str(tmp_path / "int8"), tmp_path / "plain", dtype="bf16")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    FluxTransformer2DModel.from_pretrained(tmp_path / "plain", torch_dtype=torch.bfloat16)
