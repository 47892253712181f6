"""Inspection of files in true shapes (sparse, so without their bytes), of tiny ones, and of what merges refuse."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fluxsmith.analysis.inspection import inspect
from fluxsmith.analysis.values import measure_values
from fluxsmith.errors import FileError
from fluxsmith.layouts import FLUX1
from fluxsmith.layouts.emission import emit
from support.broken_files import raw_file, write_file
from support.cli_runs import run_cli
from support.foreign_models import save_foreign
from support.tiny_flux import TinyCheckpoints, tensors_of

FULL: dict[str, Any] = {
    "patch_size": 1, "in_channels": 64, "out_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
}  # fmt: skip
DIMS = {
    "H": 3072, "M": 12288, "D": 128, "in": 64, "out": 64, "ctx": 4096, "vec": 768, "T": 256, "double": 19, "single": 38, "guidance": 1,
}  # fmt: skip


def sparse_file(file: Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str] | None = None) -> Path:
    """A bf16 file with a true header and a hole in place of its data."""
    fields: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for key, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        fields[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(fields).encode()
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + at)
    return file


def diffusers_shapes(**changes: Any) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the stock class, which has no say in our table."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    with torch.device("meta"):
        model = FluxTransformer2DModel(**{**FULL, **changes})
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def bfl_shapes(prefix: str = "", **changes: int) -> dict[str, tuple[int, ...]]:
    return {prefix + tensor.name: tensor.shape for tensor in emit(FLUX1.expand({**DIMS, **changes}), "bfl", FLUX1)}


# What stands in formats.md 1.1: kind, tensors, parameters, bytes.
TRUE_DIFFUSERS = [
    ({"guidance_embeds": False}, "schnell", "schnell-shaped (no guidance)", 1156, 11_891_178_560),
    ({}, "dev", "dev-shaped (guidance)", 1160, 11_901_408_320),
    ({"in_channels": 384}, "fill", "Fill-shaped (guidance, 384 input channels)", 1160, 11_902_391_360),
    ({"num_layers": 5, "num_single_layers": 10}, "mini", "Flux-mini-shaped (guidance, 5 + 10 blocks)", 320, 3_179_199_552),
]
TRUE_BFL = [
    ({"guidance": 0}, "schnell", 776, 11_891_178_560),
    ({}, "dev", 780, 11_901_408_320),
    ({"in": 384}, "fill", 780, 11_902_391_360),
    ({"in": 128}, "canny-depth", 780, 11_901_604_928),
    ({"double": 5, "single": 10}, "mini", 220, 3_179_199_552),
    ({"double": 8}, "8-double", 516, 8_163_264_064),
]


@pytest.mark.parametrize(("changes", "kind", "words", "tensors", "parameters"), TRUE_DIFFUSERS, ids=[case[1] for case in TRUE_DIFFUSERS])
def test_true_diffusers_shapes(tmp_path: Path, changes: dict[str, Any], kind: str, words: str, tensors: int, parameters: int) -> None:
    file = sparse_file(tmp_path / "model.safetensors", diffusers_shapes(**changes))
    begin = time.process_time()
    run = run_cli("inspect", file)
    assert time.process_time() - begin < 1.0
    assert f"FLUX.1 transformer, {words}" in run.out
    found = inspect(str(file))
    assert (found.family, found.kind, found.layout) == ("flux1", kind, "diffusers")
    assert (len(found.checkpoint.tensors), found.parameters, found.checkpoint.nbytes) == (tensors, parameters, 2 * parameters)
    assert (found.heads, found.dims["H"], found.dims["D"], found.dims["in"]) == (24, 3072, 128, changes.get("in_channels", 64))
    assert dict(found.depth) == {"double": changes.get("num_layers", 19), "single": changes.get("num_single_layers", 38)}
    assert found.guidance is changes.get("guidance_embeds", True)
    assert not (found.missing or found.unknown or found.misshapen or found.refused)


@pytest.mark.parametrize(("changes", "kind", "tensors", "parameters"), TRUE_BFL, ids=[case[1] for case in TRUE_BFL])
def test_true_bfl_shapes(tmp_path: Path, changes: dict[str, int], kind: str, tensors: int, parameters: int) -> None:
    file = sparse_file(tmp_path / "model.safetensors", bfl_shapes("model.diffusion_model.", **changes))
    begin = time.process_time()
    found = inspect(str(file))
    assert time.process_time() - begin < 1.0
    assert (found.kind, found.layout, found.prefix) == (kind, "bfl", "model.diffusion_model.")
    assert (len(found.checkpoint.tensors), found.parameters, found.checkpoint.nbytes) == (tensors, parameters, 2 * parameters)
    assert found.refused is None


def test_no_torch_without_stats(tiny: TinyCheckpoints) -> None:
    code = f"import sys; from fluxsmith.cli.main import main\nmain(['inspect', {str(tiny.a)!r}])\nsys.exit('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "2 double + 3 single" in run.stdout


def test_json_of_a_merged_file(tiny: TinyCheckpoints) -> None:
    facts = json.loads(run_cli("inspect", tiny.comfy, "--json").out)
    assert facts["parameters"] == 315_184
    assert facts["dtypes"] == {"BF16": {"tensors": 92, "parameters": 315_184, "nbytes": 630_368}}
    assert (facts["kind"], facts["guidance"], facts["heads"], facts["depth"]) == ("other", True, 2, {"double": 2, "single": 3})
    assert "formula: a" in facts["recipe"]
    assert facts["metadata"]["modelspec.architecture"] == "flux-1-dev"
    assert "keys" not in facts


def test_a_folder_of_shards(tiny: TinyCheckpoints) -> None:
    found = inspect(str(tiny.sharded))
    assert len(found.checkpoint.files) == len(list(tiny.sharded.glob("*.safetensors"))) > 1
    assert found.refused is None
    assert "shards" in run_cli("inspect", tiny.sharded).out


def test_long_metadata_are_cut_without_verbose(tmp_path: Path) -> None:
    many = {f"ss_{i}": "x" for i in range(40)} | {"modelspec.title": "a title", "modelspec.thumbnail": "data:" + "A" * 5000}
    file = sparse_file(tmp_path / "m.safetensors", bfl_shapes(double=1, single=1), many)
    short, whole = run_cli("inspect", file).out, run_cli("inspect", file, "-v").out
    assert "(5,005 characters)" in short
    assert "and 34 more ss_* keys" in short
    assert "A" * 5000 in whole
    assert "ss_39" in whole


def test_keys_with_their_places(tiny: TinyCheckpoints) -> None:
    keys = {key.key: key for key in inspect(str(tiny.sharded)).stored_keys()}
    assert len(keys) == 126
    assert keys["transformer_blocks.1.attn.to_k.weight"].canonical == "double_blocks.1.img_attn.qkv.weight[48:96]"
    assert keys["transformer_blocks.1.attn.to_k.weight"].block == "double.1"
    assert keys["single_transformer_blocks.2.proj_mlp.bias"].canonical == "single_blocks.2.linear1.bias[144:336]"
    assert keys["norm_out.linear.weight"].canonical == "final_layer.adaLN_modulation.1.weight"
    assert keys["x_embedder.weight"].shape == (48, 16)
    run = run_cli("inspect", tiny.sharded, "--keys", "double_blocks.1.img_attn.qkv.*")
    assert [line.split()[0].rpartition("attn.")[2] for line in run.out.splitlines()[1:]] == [
        "to_k.bias", "to_k.weight", "to_q.bias", "to_q.weight", "to_v.bias", "to_v.weight",
    ]  # fmt: skip
    facts = json.loads(run_cli("inspect", tiny.sharded, "--keys", "*norm_out*", "--json").out)
    assert [key["key"] for key in facts["keys"]] == ["norm_out.linear.bias", "norm_out.linear.weight"]
    assert run_cli("inspect", tiny.a, "--keys", "nothing").code == 2


def test_stats_are_those_of_torch(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    tensors = tensors_of(tiny.a)
    tensors["img_in.weight"] = tensors["img_in.weight"].clone()
    tensors["img_in.weight"][0, :3] = torch.tensor([0.0, float("nan"), float("-inf")])
    save_file(tensors, tmp_path / "m.safetensors")
    stats = json.loads(run_cli("inspect", tmp_path / "m.safetensors", "--stats", "--json").out)["stats"]
    assert list(stats)[:2] == ["time_in", "guidance_in"]
    block = torch.cat([t.flatten() for name, t in tensors.items() if name.startswith("double_blocks.1.")]).double()
    found = stats["double.1"]
    assert found["count"] == block.numel()
    assert found["mean_abs"] == pytest.approx(float(block.abs().mean()), rel=1e-12)
    assert found["rms"] == pytest.approx(float(block.square().mean().sqrt()), rel=1e-12)
    assert found["max_abs"] == float(block.abs().max())
    part = torch.cat([tensors["img_in.weight"].flatten(), tensors["img_in.bias"]]).double()
    finite = part[part.isfinite()]
    assert (stats["img_in"]["nonfinite"], stats["img_in"]["zeros"]) == (2, 1)
    assert stats["img_in"]["mean_abs"] == pytest.approx(float(finite.abs().mean()), rel=1e-12)
    one = json.loads(run_cli("inspect", tmp_path / "m.safetensors", "--stats", "--keys", "txt_in.*", "--json").out)["stats"]
    assert set(one) == {"txt_in.weight", "txt_in.bias"}


def test_stats_of_many_tiles_do_not_depend_on_threads(tmp_path: Path) -> None:
    from fluxsmith.engine.streaming import Settings

    weights = torch.randn(3_000_000, generator=torch.Generator().manual_seed(1)).half()
    save_file({"w": weights, "none": torch.zeros(0)}, tmp_path / "m.safetensors")
    views = inspect(str(tmp_path / "m.safetensors")).checkpoint.tensors
    one, four = (measure_values(views, {"w": "w", "none": "none"}, settings=Settings(threads=n)) for n in (1, 4))
    assert one == four
    assert one["w"].rms == pytest.approx(float(weights.double().square().mean().sqrt()), rel=1e-12)
    assert one["none"].count == 0


def test_an_incomplete_file_says_what_is_missing(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    whole = raw_file(tiny.a)
    gone = [key for key in whole.keys if key.startswith("double_blocks.0.") or key == "final_layer.linear.bias"]
    write_file(tmp_path / "m.safetensors", whole.without(*gone))
    found = inspect(str(tmp_path / "m.safetensors"))
    assert (found.family, dict(found.depth), found.heads, found.guidance) == ("flux1", {"double": 2, "single": 3}, 2, True)
    assert sorted(found.missing) == sorted(gone)
    assert found.refused is not None
    run = run_cli("inspect", tmp_path / "m.safetensors")
    assert run.code == 0
    assert "(guidance, 2 + 3 blocks), incomplete" in run.out
    assert "missing     25" in run.out
    assert "refused" in run.out


def test_unknown_and_misshapen_keys_are_named(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    tensors = {**tensors_of(tiny.a), "double_blocks.0.extra.weight": torch.zeros(2), "txt_in.bias": torch.zeros(5, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "m.safetensors")
    found = inspect(str(tmp_path / "m.safetensors"))
    assert found.unknown == ("double_blocks.0.extra.weight",)
    assert found.misshapen == {"txt_in.bias": ((5,), (48,))}


def test_one_shard_alone(tmp_path: Path) -> None:
    """The second of dev's three shards: a hole before its blocks, an end without the last ones."""
    inside = [f"transformer_blocks.{i}." for i in range(14, 19)] + [f"single_transformer_blocks.{i}." for i in range(25)]
    shapes = {key: shape for key, shape in diffusers_shapes().items() if key.startswith(tuple(inside))}
    found = inspect(str(sparse_file(tmp_path / "diffusion_pytorch_model-00002-of-00003.safetensors", shapes)))
    assert (found.kind, found.what) == ("part", "one shard of a FLUX.1 transformer (2 of 3)")
    assert (found.guidance, found.heads, dict(found.depth)) == (None, 24, {"double": 19, "single": 25})
    assert len(found.missing) == 14 * 32 + 16
    assert not (found.unknown or found.misshapen)


def test_components_of_an_all_in_one_file(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    others = {
        "text_encoders.clip_l.transformer.text_model.embeddings.position_embedding.weight": (77, 8),
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight": (8, 8), "vae.decoder.conv_in.bias": (8,),
        "vae.encoder.conv_in.bias": (8,), "odd.thing": (2,),
    }  # fmt: skip
    save_file({**tensors_of(tiny.comfy), **{key: torch.zeros(shape) for key, shape in others.items()}}, tmp_path / "all.safetensors")
    found = inspect(str(tmp_path / "all.safetensors"))
    assert {name: amount.tensors for name, amount in found.components.items()} == {
        "transformer": 92,
        "clip_l": 1,
        "t5": 1,
        "vae": 2,
        "other": 1,
    }
    assert found.parameters == 315_184
    assert "vae 2 tensors" in run_cli("inspect", tmp_path / "all.safetensors").out
    assert found.refused is None
    assert found.block("vae.encoder.conv_in.bias") == "vae"


KINDS = {
    "chroma": "chroma", "flux2": "flux2", "flux2-bfl": "flux2", "controlnet": "controlnet", "vae": "vae", "redux": "redux",
    "ip-adapter": "ip-adapter", "lora-diffusers": "adapter", "lora-kohya": "adapter", "lokr": "adapter", "sdxl": "sdxl",
}  # fmt: skip


@pytest.mark.parametrize(("made", "family"), KINDS.items())
def test_other_files_are_told_and_listed(tmp_path: Path, made: str, family: str) -> None:
    file = save_foreign(made, tmp_path / "m.safetensors")
    found = inspect(str(file))
    assert found.family == family
    assert found.layout == ("diffusers" if made in ("chroma", "flux2") else None)
    assert len(found.stored_keys()) == len(found.checkpoint.tensors)
    assert run_cli("inspect", file).code == 0
    assert run_cli("inspect", file, "--stats", "-q").code == 0


@pytest.mark.parametrize(
    ("change", "scheme"),
    [
        ("scaled", "scaled fp8"),
        ("nf4", "bitsandbytes 4-bit"),
        ("plain", "plain F8_E4M3 without scales"),
        ("quanto", "quanto"),
    ],
)
def test_broken_quantised_files_are_named_by_scheme(tiny: TinyCheckpoints, tmp_path: Path, change: str, scheme: str) -> None:
    tensors = tensors_of(tiny.fp8)
    name = "double_blocks.0.img_attn.proj.weight"
    if change == "scaled":
        tensors |= {name.replace(".weight", ".scale_weight"): torch.ones(()), "scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}
    elif change == "nf4":
        tensors[name] = torch.zeros((1152, 1), dtype=torch.uint8)
        tensors |= {f"{name}.absmax": torch.ones(36), f"{name}.quant_state.bitsandbytes__nf4": torch.zeros(9, dtype=torch.uint8)}
    elif change == "quanto":
        tensors[f"{name}._data"] = tensors.pop(name)
    save_file(tensors, tmp_path / "m.safetensors")
    found = inspect(str(tmp_path / "m.safetensors"))
    assert found.quantised == scheme
    assert (found.family, dict(found.depth)) == ("flux1", {"double": 2, "single": 3})
    assert (found.refused is None) == (change == "plain")
    assert not found.misshapen
    assert scheme in run_cli("inspect", tmp_path / "m.safetensors").out


def test_two_namings_at_once_are_shown(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    save_file({**tensors_of(tiny.a), **tensors_of(tiny.sharded)}, tmp_path / "m.safetensors")
    found = inspect(str(tmp_path / "m.safetensors"))
    assert (found.family, found.what) == ("flux1", "FLUX.1 under two namings at once")
    assert found.refused is not None


def test_files_without_a_header_are_errors(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(FileError):
        inspect(str(tmp_path / "m.gguf"))
    assert run_cli("inspect", tmp_path / "absent.safetensors").code == 3
