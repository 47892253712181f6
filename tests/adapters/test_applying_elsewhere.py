"""Adapters applied to text encoders, in one file with the transformer or alone, and to Stable Diffusion."""

# pyright: reportMissingTypeArgument=false
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fluxsmith as fs
from adapters.containers import Numbers, factors
from fluxsmith.errors import IncompatibleError
from support.tiny_all_in_one import PLACES, AllInOne, save_all_in_one
from support.tiny_flux import TinyCheckpoints
from support.tiny_pipelines import PIPELINES, pipeline_tensors, save_pipeline

Tensors = dict[str, Tensor]
ENCODERS = {"clip_l": "lora_te1_", "t5": "lora_te3_"}


def lora(weights: Tensors, prefix: str, numbers: Numbers) -> tuple[Tensors, Tensors]:
    """kohya's LoRA (LoCon for convolutions) of every matrix: the file's tensors, and the delta of every key."""
    stored: Tensors = {}
    deltas: Tensors = {}
    for key, weight in weights.items():
        if weight.dim() not in (2, 4) or not key.endswith(".weight") or "embed" in key or "shared" in key or "relative" in key:
            continue
        down, up = factors(numbers, (weight.shape[0], weight[0].numel()))
        alpha, name = numbers.alpha(len(down)), prefix + key.removesuffix(".weight").replace(".", "_")
        delta = float(alpha) / len(down) * (up @ down).reshape(weight.shape)
        if weight.dim() == 4:
            down, up = down.reshape(-1, *weight.shape[1:]), up[:, :, None, None]
        stored |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": alpha}
        deltas[key] = delta
    assert deltas
    return stored, deltas


@pytest.fixture(scope="module")
def one(tiny: TinyCheckpoints, tmp_path_factory: pytest.TempPathFactory) -> AllInOne:
    return save_all_in_one(tmp_path_factory.mktemp("one"), tiny.a)


@pytest.fixture(scope="module")
def with_encoders(one: AllInOne, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensors]]:
    """An adapter of the transformer and both text encoders; its deltas by component and key."""
    numbers = Numbers.seeded(5)
    parts = {"transformer": one.transformer, "clip_l": one.clip_l, "t5": one.t5}
    stored: Tensors = {}
    deltas: dict[str, Tensors] = {}
    for name, path in parts.items():
        tensors, deltas[name] = lora(load_file(path), ENCODERS.get(name, "lora_unet_"), numbers)
        stored |= tensors
    path = tmp_path_factory.mktemp("adapter") / "style.safetensors"
    save_file(stored, path)
    return path, deltas


def check(found: Tensors, before: Tensors, deltas: Tensors, strength: float) -> None:
    assert found.keys() == before.keys()
    for key, tensor in before.items():
        wanted = tensor.float() + strength * deltas.get(key, torch.zeros(()))
        torch.testing.assert_close(found[key].float(), wanted, rtol=1e-5, atol=2e-6)


def test_all_components_of_one_file(one: AllInOne, with_encoders: tuple[Path, dict[str, Tensors]]) -> None:
    path, deltas = with_encoders
    found = fs.load_state_dict(fs.model(str(one.whole), name="all") + 0.5 * fs.adapter(str(path)), layout="comfy", dtype="fp32")
    named = {PLACES[part] + key: delta for part, of_part in deltas.items() for key, delta in of_part.items()}
    check(found, load_file(one.whole), named, 0.5)


@pytest.mark.parametrize("name", list(ENCODERS))
def test_an_encoder_alone(name: str, one: AllInOne, with_encoders: tuple[Path, dict[str, Tensors]]) -> None:
    """The text encoder's part of an adapter goes into that encoder's own file; the others are left out by rule."""
    path, deltas = with_encoders
    base = fs.model(str(one.parts[name]), name="encoder")
    wish = base + 0.5 * fs.adapter(str(path), components=[name], name="style")
    check(fs.load_state_dict(wish, dtype="fp32"), load_file(one.parts[name]), deltas[name], 0.5)
    outcome = {i.name: dict(i.outcome) for i in fs.plan(wish).inputs}["style"]
    assert outcome["applied"] == 3 * len(deltas[name])
    assert outcome[f"dropped (components: [{name}])"] == 3 * sum(len(d) for part, d in deltas.items() if part != name)
    with pytest.raises(IncompatibleError, match=r"adapter\.unmatched-keys"):
        fs.plan(base + fs.adapter(str(path)))


def test_the_transformer_alone_needs_a_rule(one: AllInOne, with_encoders: tuple[Path, dict[str, Tensors]]) -> None:
    base = fs.model(str(one.transformer), name="base")
    with pytest.raises(IncompatibleError) as caught:
        fs.plan(base + fs.adapter(str(with_encoders[0])))
    assert "clip_l" in caught.value.facts["first"] and "components: [transformer]" in str(caught.value.fix)
    assert fs.plan(base + fs.adapter(str(with_encoders[0]), components=["transformer"])).jobs


@pytest.mark.parametrize(("family", "encoders"), [
    ("sd15", {"text_encoder": "lora_te_"}),
    ("sdxl", {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}),
    ("sd3.5 medium", {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_", "text_encoder_3": "lora_te3_"}),
])  # fmt: skip
def test_stable_diffusion_in_both_layouts(family: str, encoders: dict[str, str], tmp_path: Path) -> None:
    """LoCon in every matrix and convolution of the U-Net (or transformer) and the text encoders, named as diffusers does."""
    pipeline = PIPELINES[family]
    save_pipeline(pipeline, tmp_path / "base", 1)
    before, numbers = pipeline_tensors(tmp_path / "base"), Numbers.seeded(6)
    main = next(iter(pipeline.tiny))
    stored: Tensors = {}
    deltas: Tensors = {}
    for part, prefix in {main: "lora_unet_", **encoders}.items():
        weights = {key.removeprefix(f"{part}/"): tensor for key, tensor in before.items() if key.startswith(f"{part}/")}
        weights = {key: tensor for key, tensor in weights.items() if "projection" not in key}  # stored transposed elsewhere
        tensors, found = lora(weights, prefix, numbers)
        stored |= {_named(key, part): tensor for key, tensor in tensors.items()}
        deltas |= {f"{part}/{key}": delta for key, delta in found.items()}
    save_file(stored, tmp_path / "style.safetensors")
    fs.merge(str(tmp_path / "base"), tmp_path / "one.safetensors", layout=pipeline.original)
    for name in ("base", "one.safetensors"):
        wish = fs.model(str(tmp_path / name), name="base") + 0.5 * fs.adapter(str(tmp_path / "style.safetensors"))
        out = tmp_path / f"from-{Path(name).stem}"
        fs.merge(wish, out, layout="diffusers", dtype="fp32")
        after = pipeline_tensors(out)
        for key, tensor in after.items():
            wanted = before[_known(key, before)].float() + 0.5 * deltas.get(_known(key, before), torch.zeros(()))
            torch.testing.assert_close(tensor, wanted, rtol=1e-5, atol=2e-6)


def _named(key: str, part: str) -> str:
    """kohya's names of CLIP have `text_model` where transformers 5 leaves it out."""
    for prefix in ("lora_te_", "lora_te1_", "lora_te2_"):
        if part != "text_encoder_3" and key.startswith(prefix) and not key.startswith(f"{prefix}text_model"):
            return key.replace(prefix, f"{prefix}text_model_", 1)
    return key


def _known(key: str, before: Tensors) -> str:
    return key if key in before else key.replace("/text_model.", "/")
