"""Pipelines and all-in-one files of Stable Diffusion: merged over layouts, compared with diffusers' own converters."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.loaders import single_file_utils as converters
from safetensors.torch import load_file, save_file
from torch import Tensor

import fluxsmith as fs
from fluxsmith.errors import IncompatibleError, UsageError
from fluxsmith.recipes.loading import load_recipe
from support.tiny_pipelines import PIPELINES, pipeline_tensors, save_pipeline, with_text_model


def converted(name: str, file: dict[str, Tensor]) -> dict[str, Tensor]:
    """An all-in-one file in diffusers' names by diffusers' own functions."""
    pipeline = PIPELINES[name]
    configs = {part: build().config for part, build in pipeline.tiny.items()}
    found: dict[str, Tensor] = {}

    def take(part: str, state: dict[str, Tensor]) -> None:
        found.update({f"{part}/{key}": tensor for key, tensor in state.items()})

    take("vae", converters.convert_ldm_vae_checkpoint(dict(file), configs["vae"]))
    if pipeline.family == "sd3":
        own = {key: t for key, t in file.items() if key.startswith("model.diffusion_model.")}
        take("transformer", converters.convert_sd3_transformer_checkpoint_to_diffusers(own))
        for part, encoder in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g"), ("text_encoder_3", "t5xxl")):
            before = f"text_encoders.{encoder}.transformer."
            take(part, {key.removeprefix(before): t for key, t in file.items() if key.startswith(before)})
        return found
    take("unet", converters.convert_ldm_unet_checkpoint(dict(file), configs["unet"]))
    if pipeline.family == "sd15":
        take("text_encoder", converters.convert_ldm_clip_checkpoint(dict(file)))
        return found
    clip_l = converters.convert_ldm_clip_checkpoint(dict(file), remove_prefix="conditioner.embedders.0.transformer.")
    take("text_encoder", clip_l)
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=12))
    two = {key: t for key, t in file.items() if key.startswith("conditioner.embedders.1.")}
    take("text_encoder_2", converters.convert_open_clip_checkpoint(model, two, prefix="conditioner.embedders.1.model."))
    return found


@pytest.fixture(scope="module", params=["sd15", "sdxl", "sd3 medium", "sd3.5 medium"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, Tensor], dict[str, Tensor]]:
    """Two pipelines of a family as folders `a` and `b`, and `a` as one file in the original layout."""
    name: str = request.param
    root = tmp_path_factory.mktemp(re.sub(r"\W", "", name))
    one, two = (save_pipeline(PIPELINES[name], root / folder, seed) for folder, seed in (("a", 1), ("b", 2)))
    fs.merge(str(root / "a"), root / "a.safetensors", layout=PIPELINES[name].original)
    return name, root, with_names(one, name), with_names(two, name)


def with_names(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    names = with_text_model({key: tuple(t.shape) for key, t in tensors.items()}, PIPELINES[name].family)
    return dict(zip(names, tensors.values(), strict=True))


def close(a: Tensor, b: Tensor) -> bool:
    """Equal but for the last place: b - a is rounded before it is halved. Values are drawn from N(0, 1)."""
    return torch.allclose(a, b, rtol=0, atol=1e-6)


Pair = tuple[str, Path, dict[str, Tensor], dict[str, Tensor]]


def test_all_in_one_files_mean_what_diffusers_converters_say(pair: Pair) -> None:
    name, root, one, _ = pair
    back = converted(name, load_file(root / "a.safetensors"))
    assert back.keys() == one.keys()
    for key, tensor in one.items():
        assert torch.equal(back[key].reshape(tensor.shape), tensor), key


def test_an_all_in_one_file_and_a_pipeline_are_averaged_in_either_layout(pair: Pair, tmp_path: Path) -> None:
    """The file of `a` with the folder of `b`, written as a folder and as a file: every value is the mean, all are there."""
    name, root, one, two = pair
    mean = {key: (one[key].float() + two[key].float()) / 2 for key in one}
    wish = fs.weighted_sum(str(root / "a.safetensors"), str(root / "b"), alpha=0.5)
    plan = fs.plan(wish)
    assert plan.family == PIPELINES[name].family
    fs.merge(wish, tmp_path / "folder", layout="diffusers", dtype="fp32")
    found = pipeline_tensors(tmp_path / "folder")
    assert found.keys() == mean.keys()
    assert all(close(found[key], mean[key]) for key in mean)
    assert json.loads((tmp_path / "folder" / "model_index.json").read_text())["_class_name"] == PIPELINES[name].kind
    assert (tmp_path / "folder" / "tokenizer" / "merges.txt").exists()
    fs.merge(wish, tmp_path / "file.safetensors", dtype="fp32")
    back = converted(name, load_file(tmp_path / "file.safetensors"))
    assert all(close(back[key].reshape(mean[key].shape), mean[key]) for key in mean)


def test_a_pipeline_that_we_wrote_is_loaded_by_the_stock_classes(pair: Pair, tmp_path: Path) -> None:
    name, root, one, _ = pair
    fs.merge(str(root / "a"), tmp_path / "o", shard_size="40KB")
    for part, build in PIPELINES[name].tiny.items():
        model = type(build()).from_pretrained(tmp_path / "o" / part)  # pyright: ignore[reportAttributeAccessIssue]
        state = with_names({f"{part}/{key}": tensor for key, tensor in model.state_dict().items()}, name)
        for key in (key for key in one if key.startswith(f"{part}/")):
            assert torch.equal(state[key].to(torch.bfloat16), one[key]), key


def test_the_denoiser_alone_in_either_layout(pair: Pair, tmp_path: Path) -> None:
    """`components` limits the file; the result, and a folder that holds it alone, merge with each other."""
    name, root, one, two = pair
    part = next(iter(PIPELINES[name].tiny))
    whole = fs.model(str(root / "a.safetensors"), name="a", components=[part])
    fs.merge(whole, tmp_path / "alone.safetensors")
    assert all(key.startswith("model.diffusion_model.") for key in load_file(tmp_path / "alone.safetensors"))
    fs.merge(
        fs.weighted_sum(str(tmp_path / "alone.safetensors"), str(root / "b" / part), alpha=0.5),
        tmp_path / "d",
        layout="diffusers",
        dtype="fp32",
    )
    found = load_file(tmp_path / "d" / "diffusion_pytorch_model.safetensors")
    assert {f"{part}/{key}" for key in found} == {key for key in one if key.startswith(f"{part}/")}
    assert all(close(t, (one[f"{part}/{key}"].float() + two[f"{part}/{key}"].float()) / 2) for key, t in found.items())


def test_selectors_and_ramps_follow_the_blocks(pair: Pair, tmp_path: Path) -> None:
    """A range of blocks, a component and a ramp: numbers go where they are meant to go."""
    name, root, one, two = pair
    kind = "joint" if PIPELINES[name].family == "sd3" else "in"
    (tmp_path / "r.yaml").write_text(
        f"fluxsmith: 1\nmodels: {{a: {root}/a.safetensors, b: {root}/b}}\nmerge:\n  method: weighted_sum\n  inputs: [a, b]\n"
        f"  alpha: {{default: 0, {kind}.1-2: 1, vae: 1, clip_l.1: 1}}\n"
    )
    fs.merge(load_recipe(tmp_path / "r.yaml"), tmp_path / "o", layout="diffusers")
    second = {
        "sd3": ("transformer/transformer_blocks.1.", "transformer/transformer_blocks.2."),
    }.get(PIPELINES[name].family, ("unet/down_blocks.0.resnets.", "unet/down_blocks.0.attentions."))
    second += ("vae/", "text_encoder/text_model.encoder.layers.1.")
    for key, tensor in pipeline_tensors(tmp_path / "o").items():
        assert torch.equal(tensor, (two if key.startswith(second) else one)[key]), key


def test_a_pipeline_does_not_fit_into_one_file(pair: Pair, tmp_path: Path) -> None:
    _, root, _, _ = pair
    with pytest.raises(UsageError) as caught:
        fs.plan(str(root / "a"), output=tmp_path / "x.safetensors")
    assert caught.value.code == "usage.pipeline-in-a-file"


def test_incomplete_components_are_named(pair: Pair, tmp_path: Path) -> None:
    """A VAE without one tensor is refused by that key; a file whose VAE is absent is told from one that has it."""
    _, root, _, _ = pair
    tensors = load_file(root / "a.safetensors")
    key = "first_stage_model.decoder.mid.attn_1.q.weight"
    save_file({k: t for k, t in tensors.items() if k != key}, tmp_path / "m.safetensors")
    with pytest.raises(IncompatibleError) as caught:
        fs.plan(str(tmp_path / "m.safetensors"))
    assert (caught.value.code, key in caught.value.render()) == ("model.missing-keys", True)
    save_file({k: t for k, t in tensors.items() if not k.startswith("first_stage_model.")}, tmp_path / "n.safetensors")
    with pytest.raises(IncompatibleError) as caught:
        fs.plan(fs.weighted_sum(str(root / "a.safetensors"), str(tmp_path / "n.safetensors")))
    assert caught.value.code == "model.missing-tensor"


def test_a_pipeline_from_a_file_alone_has_configs(pair: Pair, tmp_path: Path) -> None:
    """No input is a pipeline: every component is still loaded by its stock class, with all values."""
    name, root, one, _ = pair
    fs.merge(str(root / "a.safetensors"), tmp_path / "o", layout="diffusers")
    for part, build in PIPELINES[name].tiny.items():
        model = type(build()).from_pretrained(tmp_path / "o" / part)
        state = with_names({f"{part}/{key}": tensor for key, tensor in model.state_dict().items()}, name)
        for key in (key for key in one if key.startswith(f"{part}/")):
            assert torch.equal(state[key].to(torch.bfloat16), one[key]), key


def test_components_of_two_models_are_put_together(pair: Pair, tmp_path: Path) -> None:
    """Everything of one but its VAE, and the VAE of the other: the change of a VAE that users ask for."""
    name, root, one, two = pair
    a, b = fs.model(str(root / "a.safetensors"), name="a"), fs.model(str(root / "b"), name="b")
    fs.merge(fs.omit(a, "vae") | fs.component(b, "vae"), tmp_path / "o", layout="diffusers")
    for key, tensor in pipeline_tensors(tmp_path / "o").items():
        assert torch.equal(tensor, (two if key.startswith("vae/") else one)[key]), (name, key)
