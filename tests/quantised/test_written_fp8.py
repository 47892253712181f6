"""Scaled fp8 as it is written: the conventions' names, shapes and formulas, computed again in torch."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import fluxsmith as fs
from fluxsmith.errors import IncompatibleError, RecipeError, UsageError
from support.tiny_flux import TinyCheckpoints, tensors_of
from support.tiny_pipelines import PIPELINES, save_pipeline
from support.wide_flux import Wide

LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
KINDS = {"": torch.float8_e4m3fn, "_e5m2": torch.float8_e5m2}


def is_quantised(name: str, tensor: Tensor) -> bool:
    """The matrices of the blocks; nothing before, after or beside them."""
    return "_blocks." in name and name.endswith(".weight") and tensor.ndim == 2


def written(wide: Wide, tmp_path: Path, dtype: str, **options: object) -> dict[str, Tensor]:
    fs.merge(str(wide.file), tmp_path / "out.safetensors", dtype=dtype, **options)  # pyright: ignore[reportArgumentType]
    return tensors_of(tmp_path / "out.safetensors")


def rounded(weight: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
    return (weight / scale).clamp(-LARGEST[kind], LARGEST[kind]).to(kind)


@pytest.mark.parametrize("suffix", ["", "_e5m2"])
@pytest.mark.parametrize(("scheme", "key"), [("fp8_scaled", "scale_weight"), ("fp8_comfy", "weight_scale")])
def test_a_scale_per_tensor_as_comfyui_has_it(scheme: str, key: str, suffix: str, wide: Wide, tmp_path: Path) -> None:
    kind = KINDS[suffix]
    found = written(wide, tmp_path, scheme + suffix)
    for name, weight in wide.tensors.items():
        stored = found.pop(name)
        if not is_quantised(name, weight):
            assert stored.dtype == torch.bfloat16
            assert torch.equal(stored, weight)
            continue
        scale = found.pop(name.removesuffix("weight") + key)
        assert (scale.dtype, scale.shape) == (torch.float32, ())
        assert scale == weight.float().abs().max() / LARGEST[kind]
        assert torch.equal(stored.view(torch.uint8), rounded(weight.float(), scale, kind).view(torch.uint8))
        if scheme == "fp8_comfy":
            name_of_kind = "float8_e5m2" if suffix else "float8_e4m3fn"
            assert json.loads(found.pop(name.removesuffix("weight") + "comfy_quant").numpy().tobytes()) == {"format": name_of_kind}
    if scheme == "fp8_scaled":
        marker = found.pop("scaled_fp8")
        assert (marker.dtype, marker.numel()) == (kind, 0)
    assert not found


@pytest.mark.parametrize("scheme", ["fp8_channel", "fp8_block"])
def test_a_scale_per_row_or_block_as_sd_scripts_has_it(scheme: str, wide: Wide, tmp_path: Path) -> None:
    found = written(wide, tmp_path, scheme)
    widths: set[int] = set()
    for name, weight in wide.tensors.items():
        stored = found.pop(name)
        if not is_quantised(name, weight):
            assert torch.equal(stored, weight)
            continue
        out, width = weight.shape
        blocks = weight.float().view(out, -1, 64) if scheme == "fp8_block" else weight.float()
        scale = found.pop(name.removesuffix("weight") + "scale_weight")
        assert scale.shape == ((out, width // 64, 1) if scheme == "fp8_block" else (out, 1))
        assert torch.equal(scale, (blocks.abs().amax(-1, keepdim=True) / 448).bfloat16())
        quantised = rounded(blocks, scale.float(), torch.float8_e4m3fn).view(out, width)
        assert torch.equal(stored.view(torch.uint8), quantised.view(torch.uint8))
        widths.add(width)
    assert not found
    assert widths == {64, 256, 320}  # one block, four and five


def test_rows_that_are_no_whole_blocks_get_a_scale_each(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    fs.merge(str(tiny.a), tmp_path / "out.safetensors", dtype="fp8_block")
    shapes = {k: tuple(t.shape) for k, t in tensors_of(tmp_path / "out.safetensors").items() if k.endswith("scale_weight")}
    assert shapes["double_blocks.0.img_attn.qkv.scale_weight"] == (144, 1)  # 48 columns
    assert shapes["double_blocks.0.img_mlp.2.scale_weight"] == (48, 3, 1)  # 192


def test_q_k_and_v_have_scales_of_their_own_where_they_are_tensors(wide: Wide, tmp_path: Path) -> None:
    fs.merge(str(wide.file), tmp_path / "out", dtype="fp8_scaled", layout="diffusers", shard_size="3KB")
    found = tensors_of(tmp_path / "out")
    index = json.loads((tmp_path / "out" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(found)
    files = index["weight_map"]
    assert any(files[key] != files[key.removesuffix("weight") + "scale_weight"] for key in found if f"{key[:-6]}scale_weight" in found)
    fs.merge(str(tmp_path / "out"), tmp_path / "one", dtype="fp8_scaled")
    one = tensors_of(tmp_path / "one")
    assert all(torch.equal(one[key].view(torch.uint8), found[key].view(torch.uint8)) for key in found if one[key].ndim == 2)
    fused = wide.tensors["single_blocks.1.linear1.weight"].float()
    for part, rows in zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), fused.split([64, 64, 64, 256]), strict=True):
        weight, scale = (found[f"single_transformer_blocks.1.{part}.{last}"] for last in ("weight", "scale_weight"))
        assert scale == rows.abs().max() / 448
        assert torch.equal(weight.view(torch.uint8), rounded(rows, scale, torch.float8_e4m3fn).view(torch.uint8))


def test_the_marker_has_the_prefix_of_the_model(wide: Wide, tmp_path: Path) -> None:
    found = written(wide, tmp_path, "fp8_scaled", layout="comfy")
    assert "model.diffusion_model.scaled_fp8" in found
    assert "model.diffusion_model.double_blocks.0.img_attn.qkv.scale_weight" in found


def test_the_folders_of_a_pipeline_are_not_quantised_their_one_file_is(tmp_path: Path) -> None:
    save_pipeline(PIPELINES["sdxl"], tmp_path / "sdxl", 1)
    with pytest.raises(IncompatibleError, match="folders of a sdxl pipeline as fp8_scaled"):
        fs.merge(str(tmp_path / "sdxl"), tmp_path / "out", dtype="fp8_scaled")
    fs.merge(str(tmp_path / "sdxl"), tmp_path / "out.safetensors", dtype="fp8_scaled", layout="sgm")
    found = tensors_of(tmp_path / "out.safetensors")
    quantised = {key for key, tensor in found.items() if tensor.dtype == torch.float8_e4m3fn and tensor.ndim}
    assert quantised - {"scaled_fp8"}
    assert all(key.startswith("model.diffusion_model.") for key in quantised - {"scaled_fp8"})


def test_text_encoders_of_an_all_in_one_file_stay_as_they_are(wide: Wide, tmp_path: Path) -> None:
    encoder = {"text_encoders.t5xxl.transformer.shared.weight": torch.randn(64, 64).to(torch.float8_e4m3fn)}
    tensors = {f"model.diffusion_model.{key}": tensor for key, tensor in wide.tensors.items()}
    save_file({**tensors, **encoder}, tmp_path / "in.safetensors", {"format": "pt"})
    whole = fs.model(str(tmp_path / "in.safetensors"), name="whole", components=("transformer",))
    fs.merge(whole, tmp_path / "out.safetensors", dtype="fp8_comfy", rest=(str(tmp_path / "in.safetensors"),))
    found = tensors_of(tmp_path / "out.safetensors")
    for key, tensor in encoder.items():
        assert torch.equal(found[key].view(torch.uint8), tensor.view(torch.uint8))
    assert found["model.diffusion_model.double_blocks.0.img_attn.qkv.comfy_quant"].numel() == 27
    fs.merge(str(wide.file), tmp_path / "alone.safetensors", dtype="fp8_comfy", layout="comfy")
    alone = tensors_of(tmp_path / "alone.safetensors")
    assert all(torch.equal(alone[key].view(torch.uint8), found[key].view(torch.uint8)) for key in alone if alone[key].ndim)


def test_rules_that_part_a_fused_tensor_need_a_scale_per_block(wide: Wide, tmp_path: Path) -> None:
    text = f"""
fluxsmith: 1
models: {{a: {wide.file}, b: {wide.other}}}
merge: {{formula: 0.5*a + 0.5*b, rules: [{{match: double.0.q, take: a}}]}}
"""
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = fs.load_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(IncompatibleError, match=r"qkv\.weight` has one scale") as error:
        fs.merge(recipe, tmp_path / "out.safetensors", dtype="fp8_scaled")
    assert error.value.code == "output.scale-of-several-parts"
    assert "--dtype fp8_block" in str(error.value.fix)
    fs.merge(recipe, tmp_path / "out.safetensors", dtype="fp8_block")
    parted = tensors_of(tmp_path / "out.safetensors")
    fs.merge(str(wide.file), tmp_path / "a.safetensors", dtype="fp8_block")
    fs.merge(fs.weighted_sum(str(wide.file), str(wide.other)), tmp_path / "mean.safetensors", dtype="fp8_block")
    for rows, name in ((slice(0, 64), "a"), (slice(64, 192), "mean")):
        alone = tensors_of(tmp_path / f"{name}.safetensors")
        for last in ("weight", "scale_weight"):
            key = f"double_blocks.0.img_attn.qkv.{last}"
            assert torch.equal(parted[key][rows].contiguous().view(torch.uint8), alone[key][rows].contiguous().view(torch.uint8)), (
                name,
                last,
            )
    fs.merge(recipe, tmp_path / "parts", dtype="fp8_scaled", layout="diffusers")  # q, k and v are tensors there


def test_selectors_keep_tensors_as_they_are(wide: Wide, tmp_path: Path) -> None:
    found = written(wide, tmp_path, "fp8_scaled", unquantised=["double.0", "modulation"])
    kept = {name for name, weight in wide.tensors.items() if is_quantised(name, weight) and found[name].dtype == torch.bfloat16}
    assert kept == {
        name
        for name, weight in wide.tensors.items()
        if is_quantised(name, weight) and (name.startswith("double_blocks.0.") or "_mod." in name or ".modulation." in name)
    }
    assert not any(name.removesuffix("weight") + "scale_weight" in found for name in kept)
    with pytest.raises(RecipeError, match=r"`double\.7` matches no tensor"):
        fs.merge(str(wide.file), tmp_path / "no.safetensors", dtype="fp8_scaled", unquantised=["double.7"])


def test_naive_fp8_never_writes_infinity(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([1e6, -1e6, 500.0, 0.1])}, tmp_path / "in.safetensors")
    for dtype, largest in (("fp8_e4m3", 448.0), ("fp8_e5m2", 57344.0)):
        run = fs.merge(str(tmp_path / "in.safetensors"), tmp_path / f"{dtype}.safetensors", dtype=dtype)
        values = tensors_of(tmp_path / f"{dtype}.safetensors")["a"].float()
        assert values[:2].tolist() == [largest, -largest]
        assert run.outcome.saturated == {"a": 3 if dtype == "fp8_e4m3" else 2}


def test_a_tensor_of_zeros_stays_one(wide: Wide, tmp_path: Path) -> None:
    tensors = {name: torch.zeros_like(t) if name.endswith("img_mlp.0.weight") else t for name, t in wide.tensors.items()}
    save_file(tensors, tmp_path / "in.safetensors", {"format": "pt"})
    for scheme in ("fp8_scaled", "fp8_block", "int8_torchao", "q8_0", "q4_0"):
        out = tmp_path / (f"{scheme}.gguf" if scheme[0] == "q" else scheme if scheme[0] == "i" else f"{scheme}.safetensors")
        fs.merge(str(tmp_path / "in.safetensors"), out, dtype=scheme)
        fs.merge(str(out), tmp_path / f"{scheme}-back.safetensors", dtype="fp32", layout="bfl")
        back = tensors_of(tmp_path / f"{scheme}-back.safetensors")
        assert not back["double_blocks.1.img_mlp.0.weight"].any()


def test_what_has_no_blocks_is_not_quantised(tmp_path: Path) -> None:
    save_file({"layers.0.weight": torch.ones(64, 64)}, tmp_path / "in.safetensors")
    with pytest.raises(IncompatibleError, match="fp8_scaled quantises the blocks of a known family") as error:
        fs.merge(str(tmp_path / "in.safetensors"), tmp_path / "out.safetensors", dtype="fp8_scaled")
    assert error.value.code == "output.nothing-to-quantise"


def test_a_state_dict_is_not_quantised(wide: Wide) -> None:
    for load in (fs.load_state_dict, fs.load):
        with pytest.raises(UsageError, match="fp8_scaled is a form of files"):
            load(str(wide.file), dtype="fp8_scaled")


def test_header_metadata_stay(wide: Wide, tmp_path: Path) -> None:
    written(wide, tmp_path, "fp8_comfy")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert "dtype: fp8_comfy" in metadata["fluxsmith.recipe"]
