"""Whole quantised models: any layout into any other, stock classes, merges, plans, what inspect says."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fluxsmith as fs
from fluxsmith.analysis.inspection import inspect
from fluxsmith.io import View, open_checkpoint
from fluxsmith.io.quantised import decoded
from quantised.producers import Stored, comfy, comfy_legacy, gguf_file, int8, nf4, sd_scripts
from support.cli_runs import run_cli
from support.tiny_flux import TinyCheckpoints, make_transformer, save_diffusers, tensors_of

Tensors = dict[str, Tensor]
PREFIX = "model.diffusion_model."


def saved_plain(plain: Tensors, stored: Stored, file: Path) -> Path:
    """The same model with the values of the quantised file, as fp32."""
    save_file({key: stored.values.get(key, tensor).float().contiguous() for key, tensor in plain.items()}, file, {"format": "pt"})
    return file


@pytest.mark.parametrize("produce", [nf4, int8, comfy, sd_scripts])
def test_split_layers_are_fused_through_their_codecs(produce: object, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """A diffusers file has q, k and v with scales of their own; in bfl they are rows of one tensor, in another order."""
    plain = tensors_of(tiny.sharded)
    stored: Stored = produce(plain)  # pyright: ignore[reportCallIssue, reportUnknownVariableType]
    quantised = stored.save(tmp_path / "q.safetensors")
    values = saved_plain(plain, stored, tmp_path / "values.safetensors")
    for layout in ("bfl", "diffusers", "comfy"):
        found = fs.load_state_dict(str(quantised), layout=layout, dtype="fp32")
        expected = fs.load_state_dict(str(values), layout=layout, dtype="fp32")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key].bfloat16(), expected[key].bfloat16()) for key in found), layout


def test_fused_layers_are_split_through_their_codecs(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """A bfl file with nested scales: q, k and v begin inside of the fused tensor, and the halves of adaLN are swapped."""
    plain = tensors_of(tiny.a)
    stored = nf4(plain, nested=True)
    quantised = stored.save(tmp_path / "q.safetensors")
    values = saved_plain(plain, stored, tmp_path / "values.safetensors")
    found, expected = (fs.load_state_dict(str(file), layout="diffusers", dtype="bf16") for file in (quantised, values))
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert "transformer_blocks.0.attn.to_k.weight" in found


def test_a_gguf_opens_as_a_stock_transformer(tmp_path: Path) -> None:
    """Converted to diffusers, it computes what the same model computes with gguf's values."""
    changes = {"attention_head_dim": 32, "axes_dims_rope": (8, 12, 12), "joint_attention_dim": 32, "pooled_projection_dim": 32}
    folder = save_diffusers(make_transformer(7, in_channels=32, **changes), tmp_path / "d")
    plain = fs.load_state_dict(str(folder), layout="bfl")
    values = gguf_file(tmp_path / "m.gguf", plain, "Q4_1")
    assert len(values) > 20
    converted = run_cli("convert", tmp_path / "m.gguf", "--layout", "diffusers", "--dtype", "fp32", "-o", tmp_path / "out", "-q")
    assert converted.code == 0, converted.err
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    ours = FluxTransformer2DModel.from_pretrained(tmp_path / "out")
    save_file({key: values.get(key, tensor).float().contiguous() for key, tensor in plain.items()}, tmp_path / "values.safetensors")
    theirs = fs.load(str(tmp_path / "values.safetensors"), dtype="fp32")
    with torch.no_grad():
        assert torch.equal(_forward(ours), _forward(theirs))


def _forward(model: torch.nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    ids = torch.zeros(4, 3)
    ids[:, 1] = torch.arange(4)
    return model(
        hidden_states=torch.randn(1, 4, 32, generator=generator), encoder_hidden_states=torch.randn(1, 3, 32, generator=generator),
        pooled_projections=torch.randn(1, 32, generator=generator), timestep=torch.tensor([0.5]), img_ids=ids, txt_ids=torch.zeros(3, 3),
        guidance=torch.tensor([3.5]), return_dict=False,
    )[0]  # fmt: skip


def test_a_folder_by_diffusers_and_torchao(tmp_path: Path) -> None:
    """What save_pretrained of a model that was loaded in int8 writes, shards and all."""
    from diffusers import FluxTransformer2DModel, TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    source = save_diffusers(make_transformer(3), tmp_path / "plain")
    config = TorchAoConfig(Int8WeightOnlyConfig())
    model = FluxTransformer2DModel.from_pretrained(source, quantization_config=config, torch_dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "int8", max_shard_size="100KB")
    expected = {
        key: tensor.dequantize() if hasattr(tensor, "dequantize") and type(tensor) is not Tensor else tensor
        for key, tensor in model.state_dict().items()
    }
    found = fs.load_state_dict(str(tmp_path / "int8"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    converted = run_cli("convert", tmp_path / "int8", "--dtype", "bf16", "-o", tmp_path / "out", "-q")
    assert converted.code == 0, converted.err
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    again = FluxTransformer2DModel.from_pretrained(tmp_path / "out", torch_dtype=torch.bfloat16)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in again.state_dict().items())


def test_a_folder_of_transformers_loses_what_it_says_of_its_quantisation(tmp_path: Path) -> None:
    """transformers would look for 4-bit weights where config.json says so."""
    (tmp_path / "in").mkdir()
    key = "model.layers.0.self_attn.q_proj.weight"
    nf4({key: torch.randn(64, 64).bfloat16()}).save(tmp_path / "in" / "model.safetensors")
    fields = {"model_type": "llama", "hidden_size": 64, "quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}}
    (tmp_path / "in" / "config.json").write_text(json.dumps(fields))
    run = run_cli("convert", tmp_path / "in", "--dtype", "bf16", "-o", tmp_path / "out", "-q")
    assert run.code == 0, run.err
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"model_type": "llama", "hidden_size": 64}
    assert tensors_of(tmp_path / "out").keys() == {key}


def test_rows_that_are_cut_and_joined_again_are_one_extent(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """So that a tensor that was split and fused on the way is decoded in one piece."""
    file = nf4(tensors_of(tiny.a)).save(tmp_path / "q.safetensors")
    view = decoded(open_checkpoint(file)).tensors["double_blocks.0.img_attn.qkv.weight"]
    q, k, v = (view.rows(48 * i, 48 * i + 48) for i in range(3))
    assert View.stack([q, k, v]) == view
    assert len(View.stack([k, q, v]).extents) == 3
    assert q.nbytes + k.nbytes + v.nbytes == view.nbytes


def test_every_key_of_a_quantised_input_is_accounted_for(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    stored = comfy_legacy(tensors_of(tiny.a))
    file = stored.save(tmp_path / "q.safetensors")
    plan = fs.plan(fs.weighted_sum(fs.model(str(file)), fs.model(str(tiny.b)), alpha=0.5), dtype="bf16")
    outcome, scaled = plan.inputs[0].outcome, len(stored.values)
    assert outcome == {"merged": 92, "scales and tables of others": scaled + 1, "dropped (activation scale)": scaled}
    assert sum(outcome.values()) == plan.inputs[0].tensors == len(stored.tensors)
    assert plan.inputs[0].nbytes == sum(tensor.nbytes for tensor in stored.tensors.values())
    assert set(plan.inputs[0].dtypes) == {"BF16", "F8_E4M3"}


def test_a_bundle_with_one_scaled_component(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """Beside a scaled transformer a text encoder may be plain fp8: its weights are values already."""
    model = {PREFIX + key: tensor for key, tensor in tensors_of(tiny.a).items()}
    stored = comfy_legacy(model, prefix=PREFIX)
    key = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight"
    stored.tensors[key] = torch.randn(8, 8).to(torch.float8_e4m3fn)
    file = stored.save(tmp_path / "all.safetensors")
    found = inspect(str(file))
    assert found.refused is None
    assert {name: amount.tensors for name, amount in found.components.items()} == {
        "transformer": 92, "t5": 1, "scales": len(stored.tensors) - 93,
    }  # fmt: skip


WORDS = {
    "scaled fp8 (ComfyUI, older)": comfy_legacy,
    "scaled fp8 (ComfyUI)": comfy,
    "scaled fp8 (sd-scripts)": sd_scripts,
    "bitsandbytes 4-bit (nf4)": nf4,
}


@pytest.mark.parametrize("scheme", WORDS)
def test_inspect_tells_the_scheme_and_true_sizes(scheme: str, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    stored = WORDS[scheme](tensors_of(tiny.a))
    file = stored.save(tmp_path / "q.safetensors")
    found = inspect(str(file))
    assert found.quantised == f"{scheme}, {len(stored.values)} of 92 tensors"
    assert (found.parameters, found.refused, found.missing, found.unknown) == (315_184, None, (), ())
    assert {key.key for key in found.stored_keys()} == stored.tensors.keys()
    shown = run_cli("inspect", file)
    assert scheme in shown.out
    assert "315,184 parameters" in shown.out


def test_stats_are_of_the_values(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    stored = nf4(tensors_of(tiny.a))
    file = stored.save(tmp_path / "q.safetensors")
    key = "double_blocks.0.img_attn.qkv.weight"
    shown = json.loads(run_cli("inspect", file, "--keys", key, "--stats", "--json").out)
    assert shown["stats"][key]["max_abs"] == pytest.approx(float(stored.values[key].float().abs().max()), rel=0.01)


def test_inspecting_a_gguf(tmp_path: Path, tiny: TinyCheckpoints) -> None:
    plain = {key: tensor for key, tensor in tensors_of(tiny.a).items()}
    gguf_file(tmp_path / "m.gguf", {key: t for key, t in plain.items() if t.ndim == 1 or t.shape[1] % 32 == 0}, "Q8_0")
    shown = run_cli("inspect", tmp_path / "m.gguf")
    assert shown.code == 0
    assert "GGUF (flux)" in shown.out
    assert "Q8_0" in shown.out


def test_the_difference_of_a_quantised_model_is_that_of_its_values(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    plain = tensors_of(tiny.a)
    stored = comfy(plain)
    file = stored.save(tmp_path / "q.safetensors")
    shown = json.loads(run_cli("diff", tiny.a, file, "--json").out)
    assert 0.02 < shown["total"]["relative"] < 0.04  # e4m3 with three bits of mantissa: 2.7 % of random weights
    values = saved_plain(plain, stored, tmp_path / "values.safetensors")
    assert json.loads(run_cli("diff", values, file, "--json").out)["total"]["changed"] == 0


def test_a_merge_of_two_schemes(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """Two inputs with codecs, one of them in another layout, give what their values give."""
    bfl, diffusers = tensors_of(tiny.b), tensors_of(tiny.sharded)
    a, b = nf4(diffusers, nested=True), comfy(bfl)
    files = [a.save(tmp_path / "a.safetensors"), b.save(tmp_path / "b.safetensors")]
    plain = [saved_plain(diffusers, a, tmp_path / "va.safetensors"), saved_plain(bfl, b, tmp_path / "vb.safetensors")]

    def merged(inputs: list[Path]) -> Tensors:
        one, two = (fs.model(str(file)) for file in inputs)
        return fs.load_state_dict(fs.weighted_sum(one, two, alpha=0.3), layout="bfl", dtype="bf16")

    found, expected = merged(files), merged(plain)
    different = sum(int((found[key] != expected[key]).sum()) for key in expected)
    # bitsandbytes' values were rounded to bf16 before the merge, ours were not
    assert different < 0.3 * sum(tensor.numel() for tensor in expected.values())
    for key in expected:
        torch.testing.assert_close(found[key].float(), expected[key].float(), rtol=2**-7, atol=1e-3)


def test_planning_reads_headers_alone(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """Recognising schemes and opening a GGUF imports no torch."""
    import subprocess
    import sys

    files = [produce(tensors_of(tiny.a)).save(tmp_path / f"{i}.safetensors") for i, produce in enumerate((nf4, comfy, int8))]
    gguf_file(tmp_path / "m.gguf", {"x.weight": torch.zeros(4, 32)}, "Q8_0")
    code = (
        "import sys\nfrom pathlib import Path\nfrom fluxsmith.io import open_checkpoint\nfrom fluxsmith.io.quantised import decoded\n"
        "for name in sys.argv[1:]: assert any(v.coded for v in decoded(open_checkpoint(Path(name))).tensors.values())\n"
        "sys.exit('torch' in sys.modules)"
    )
    arguments = [sys.executable, "-c", code, *map(str, files), str(tmp_path / "m.gguf")]
    assert subprocess.run(arguments, check=False).returncode == 0


def test_the_output_is_written_plain_where_that_is_asked_for(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    stored = comfy(tensors_of(tiny.a))
    file = stored.save(tmp_path / "q.safetensors")
    run = run_cli("convert", file, "--dtype", "bf16", "-o", tmp_path / "out.safetensors", "-q")
    assert run.code == 0, run.err
    written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == tensors_of(tiny.a).keys()
    assert all(torch.equal(written[key], value.bfloat16()) for key, value in stored.values.items())
