"""All-in-one files are taken apart and put together again, byte for byte; the parts open in the stock classes."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false, reportPrivateImportUsage=false
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel

import fluxsmith as fs
from fluxsmith.io.opening import open_checkpoint
from support.cli_runs import run_cli
from support.tiny_all_in_one import PLACES, AllInOne, clip_model, prefixed, save_all_in_one, t5_model, vae_model
from support.tiny_flux import TinyCheckpoints, tensors_of
from support.tiny_pipelines import PIPELINES, save_pipeline

FILES = {"transformer": "transformer", "clip_l": "clip_l", "t5": "t5xxl", "vae": "ae"}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "scaled"])
def one(request: pytest.FixtureRequest, tiny: TinyCheckpoints, tmp_path_factory: pytest.TempPathFactory) -> AllInOne:
    """An all-in-one file whose T5 is in plain or scaled fp8."""
    return save_all_in_one(tmp_path_factory.mktemp("one"), tiny.a, scaled=request.param)


def bytes_of(file: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    tensors = load_file(file)
    return {key: (str(t.dtype), tuple(t.shape), t.reshape(-1).view(torch.uint8).numpy().tobytes()) for key, t in tensors.items()}


def run(*arguments: object) -> str:
    ended = run_cli(*map(str, arguments))
    assert ended.code == 0, ended.err
    return ended.out


def refused(*arguments: object) -> dict[str, Any]:
    ended = run_cli(*map(str, arguments), "--json")
    assert ended.code in (2, 4), ended.err
    return json.loads(ended.out.strip().split("\n")[-1])["error"]


def bundle_arguments(folder: Path) -> list[str]:
    return [f"--{name.replace('_', '-')}={folder / file}.safetensors" for name, file in FILES.items()]


def test_parts_are_the_components_own_files_and_make_the_file_again(one: AllInOne, tmp_path: Path) -> None:
    run("split", one.whole, "-o", tmp_path / "parts")
    assert sorted(p.name for p in (tmp_path / "parts").glob("*.safetensors")) == sorted(f"{file}.safetensors" for file in FILES.values())
    for name, file in FILES.items():
        assert bytes_of(tmp_path / "parts" / f"{file}.safetensors") == bytes_of(one.parts[name]), name
    run("bundle", "-o", tmp_path / "again.safetensors", *bundle_arguments(tmp_path / "parts"))
    assert bytes_of(tmp_path / "again.safetensors") == bytes_of(one.whole)


def test_parts_open_in_the_stock_classes(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    one = save_all_in_one(tmp_path / "one", tiny.a)
    run("split", one.whole, "-o", tmp_path / "parts")
    models: list[tuple[Any, str, Any]] = [(clip_model(1), "clip_l", CLIPTextModel), (t5_model(2), "t5xxl", T5EncoderModel)]
    for model, name, kind in models:
        folder = tmp_path / name
        model.config.save_pretrained(folder)
        shutil.copy(tmp_path / "parts" / f"{name}.safetensors", folder / "model.safetensors")
        opened, found = kind.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
        assert not found["missing_keys"] and not found["unexpected_keys"]
        stored = torch.float16 if name == "clip_l" else torch.float8_e4m3fn
        for key, tensor in model.state_dict().items():
            assert torch.equal(opened.state_dict()[key], tensor.to(stored).float()), key
    vae: Any = vae_model(3)
    own = convert_ldm_vae_checkpoint(load_file(tmp_path / "parts" / "ae.safetensors"), vae.config)
    again: Any = AutoencoderKL.from_config(vae.config)
    assert again.load_state_dict(own, strict=True)
    assert all(torch.equal(tensor, vae.state_dict()[key]) for key, tensor in again.state_dict().items())


def test_parts_carry_their_lineage_and_are_made_again_one_by_one(one: AllInOne, tmp_path: Path) -> None:
    run("split", one.whole, "-o", tmp_path / "parts")
    for file in FILES.values():
        path = tmp_path / "parts" / f"{file}.safetensors"
        metadata = open_checkpoint(path).metadata
        assert json.loads(metadata["fluxsmith.inputs"])[0]["reference"] == str(one.whole)
        run("reproduce", path, "-o", tmp_path / f"{file}-again.safetensors")
        assert (tmp_path / f"{file}-again.safetensors").read_bytes() == path.read_bytes()
    run("bundle", "-o", tmp_path / "all.safetensors", *bundle_arguments(tmp_path / "parts"))
    run("reproduce", tmp_path / "all.safetensors", "-o", tmp_path / "all-again.safetensors")
    assert (tmp_path / "all-again.safetensors").read_bytes() == (tmp_path / "all.safetensors").read_bytes()


def test_only_some_components(one: AllInOne, tmp_path: Path) -> None:
    run("split", one.whole, "-o", tmp_path / "two", "--only", "vae,clip_l")
    assert sorted(p.name for p in (tmp_path / "two").glob("*.safetensors")) == ["ae.safetensors", "clip_l.safetensors"]
    run("split", one.whole, "-o", tmp_path / "mine.safetensors", "--only", "vae")
    assert bytes_of(tmp_path / "mine.safetensors") == bytes_of(one.vae)
    assert refused("split", one.whole, "-o", tmp_path / "x", "--only", "clip_g")["code"] == "model.no-component"
    assert refused("split", one.whole, "-o", tmp_path / "x.safetensors")["code"] == "usage.components-in-a-file"
    assert not (tmp_path / "x").exists()


def test_keys_of_no_component_are_asked_about(one: AllInOne, tmp_path: Path) -> None:
    more = {"text_encoders.clip_l.logit_scale": torch.ones(()), "a.b": torch.zeros(3, dtype=torch.int64)}
    save_file({**load_file(one.whole), **more}, tmp_path / "all.safetensors")
    error = refused("split", tmp_path / "all.safetensors", "-o", tmp_path / "parts")
    assert error["code"] == "split.unknown-keys"
    assert not (tmp_path / "parts").exists()
    only = error["fix"].split()[1]
    assert only == "transformer,clip_l,t5,vae,rest"
    run("split", tmp_path / "all.safetensors", "-o", tmp_path / "parts", "--only", only)
    assert load_file(tmp_path / "parts" / "rest.safetensors").keys() == more.keys()
    rest = f"rest={tmp_path / 'parts' / 'rest.safetensors'}"
    run("bundle", rest, "-o", tmp_path / "again.safetensors", *bundle_arguments(tmp_path / "parts"))
    assert bytes_of(tmp_path / "again.safetensors") == bytes_of(tmp_path / "all.safetensors")
    run("split", tmp_path / "all.safetensors", "-o", tmp_path / "four", "--only", "transformer,clip_l,t5,vae")
    assert len(list((tmp_path / "four").glob("*.safetensors"))) == 4


def test_bundles_that_cannot_be_meant(one: AllInOne, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    parts = {f"--{name.replace('_', '-')}": str(path) for name, path in one.parts.items()}

    def said(**changes: str | None) -> list[str]:
        changed = {**parts, **{f"--{name.replace('_', '-')}": value for name, value in changes.items()}}
        return ["bundle", "-o", str(tmp_path / "o.safetensors"), *(f"{name}={value}" for name, value in changed.items() if value)]

    missing = refused(*said(t5=None))
    assert (missing["code"], missing["fix"]) == ("bundle.missing-component", "t5=FILE")
    assert refused(*said(transformer=None))["code"] == "bundle.missing-component"
    wrong = refused(*said(vae=str(one.clip_l)))
    assert wrong["code"] == "bundle.wrong-kind" and f"clip_l={one.clip_l}" in wrong["fix"]
    assert refused(*said(), f"vae={one.clip_l}")["code"] == "usage.given-twice"
    assert refused(*said(), f"clip_g={one.clip_l}")["code"] in ("bundle.wrong-kind", "bundle.no-such-component")
    assert refused(*said(), f"rest={one.vae}")["code"] == "rest.twice"
    assert not (tmp_path / "o.safetensors").exists()


def test_the_transformer_of_an_all_in_one_file_and_one_in_diffusers_names(one: AllInOne, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    others = [f"{name}={path}" for name, path in one.parts.items() if name != "transformer"]
    for transformer in (one.whole, tiny.sharded, tiny.comfy):
        run("bundle", f"transformer={transformer}", *others, "-o", tmp_path / "o.safetensors", "--force")
        assert bytes_of(tmp_path / "o.safetensors") == bytes_of(one.whole)


def save_flux_pipeline(folder: Path, transformer: Path) -> dict[str, Tensor]:
    """A FLUX.1 pipeline as diffusers and transformers save it; returns what its all-in-one file must hold beside the transformer."""
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    shutil.copytree(transformer, folder / "transformer")
    models: Mapping[str, Any] = {"text_encoder": clip_model(1).half(), "text_encoder_2": t5_model(2).bfloat16(), "vae": vae_model(3)}
    for part, model in models.items():
        model.save_pretrained(folder / part)
    clip = {f"text_model.{key.removeprefix('text_model.')}": t for key, t in models["text_encoder"].state_dict().items()}
    t5 = {key: t for key, t in models["text_encoder_2"].state_dict().items() if "embed_tokens" not in key}
    return {**prefixed(PLACES["clip_l"], clip), **prefixed(PLACES["t5"], t5)}


@pytest.mark.parametrize("command", ["bundle", "convert"])
def test_a_pipeline_s_folder_becomes_one_file(tiny: TinyCheckpoints, tmp_path: Path, command: str) -> None:
    expected = save_flux_pipeline(tmp_path / "pipeline", tiny.sharded)
    more = ["--bundle"] if command == "convert" else []
    run(command, tmp_path / "pipeline", "-o", tmp_path / "o.safetensors", *more)
    found = load_file(tmp_path / "o.safetensors")
    expected |= prefixed(PLACES["transformer"], tensors_of(tiny.a))
    vae = {key.removeprefix("vae."): tensor for key, tensor in found.items() if key.startswith("vae.")}
    assert found.keys() - {f"vae.{key}" for key in vae} == expected.keys()
    assert all(found[key].dtype == tensor.dtype and torch.equal(found[key], tensor) for key, tensor in expected.items())
    model = vae_model(3)
    again = convert_ldm_vae_checkpoint(vae, model.config)
    assert all(torch.equal(tensor, again[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3 medium"])
def test_other_families_go_apart_and_together(tmp_path: Path, family: str) -> None:
    pipeline = PIPELINES[family]
    save_pipeline(pipeline, tmp_path / "pipeline", 1)
    fs.merge(str(tmp_path / "pipeline"), tmp_path / "all.safetensors", layout=pipeline.original)
    run("split", tmp_path / "all.safetensors", "-o", tmp_path / "parts")
    names = {"t5xxl": "t5"}
    parts = [f"{names.get(p.stem, p.stem)}={p}" for p in sorted((tmp_path / "parts").glob("*.safetensors"))]
    run("bundle", *parts, "-o", tmp_path / "again.safetensors")
    assert bytes_of(tmp_path / "again.safetensors") == bytes_of(tmp_path / "all.safetensors")
