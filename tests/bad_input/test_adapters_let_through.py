"""Adapters with something odd that is no fault: it is said, and the result is what it should be."""

import json

from bad_input.adapters import STRANGER, dora, good, kohya, over, pair, put
from bad_input.cases import Yard
from support.broken_files import raw_file
from support.cli_runs import run_cli


def test_keys_left_out_by_the_program_are_named(yard: Yard) -> None:
    zeros = {key: tensor.abs() * 0 for key, tensor in pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", 4, 32, 8).items()}
    run = run_cli(*over(yard, put(yard, {**kohya(), **zeros})))
    assert run.code == 0, run.err
    assert "warning: broken: 2 keys" in run.err and "all zero" in run.err


def test_an_alpha_that_is_not_needed_is_said(yard: Yard) -> None:
    import torch

    tensors = {**kohya(), "lora_unet_double_blocks_1_img_attn_proj.alpha": torch.tensor(1.0)}
    run = run_cli(*over(yard, put(yard, tensors)), "--alpha", 3)
    assert run.code == 0, run.err
    assert "warning: broken: alpha 3 is not used" in run.err


def test_an_adapter_with_a_base_of_its_own_stands_where_models_do(yard: Yard) -> None:
    """As in the sum: what it adds to that base."""
    style = put(yard, dora())
    merged: list[bytes] = []
    for more in ("", ", base: a"):
        entry = f"{{adapter: {style}{more}}}"
        recipe = (
            f"fluxsmith: 1\nmodels: {{a: {{a}}, b: {{b}}, s: {entry}}}\nmerge: {{method: ties, base: a, inputs: [b, s], density: 0.5}}\n"
        )
        run = run_cli(*yard.recipe(recipe))
        assert run.code == 0, run.err
        merged.append(raw_file(yard.target).data)
    assert merged[0] == merged[1]


def test_keys_ignored_in_a_merge_by_a_method(yard: Yard) -> None:
    """And a target in a folder that is not there yet."""
    strange = put(yard, {**kohya(), **pair(STRANGER)})
    output = yard.root / "new" / "both.safetensors"
    words = ["adapter", "merge", good(yard), strange, "-o", output, "--method", "ties", "--rank", 4]
    assert "adapter.unmatched-keys" in run_cli(*words).err
    run = run_cli(*words, "--ignore", "*_qvk.*", "--json")
    assert run.code == 0, run.err
    assert json.loads(run.out)["modules"] == 2
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_json_alone_is_on_stdout(yard: Yard) -> None:
    style, out = good(yard), yard.root / "out.safetensors"
    for words in (
        ["apply", style, "-b", yard.tiny.a, "-o", out], ["extract", yard.tiny.b, yard.tiny.a, "-o", out, "--rank", 2],
        ["adapter", "inspect", style], ["adapter", "convert", style, "--to", "diffusers", "-o", out],
        ["adapter", "resize", style, "--rank", 2, "-o", out], ["adapter", "merge", style, style, "-o", out],
        ["convert", yard.tiny.a, "--dtype", "fp8_scaled", "-o", out], ["list", "dialects"], ["doctor"],
    ):  # fmt: skip
        run = run_cli(*words, *(["--force"] if out in words else []), "--json")
        assert run.code == 0, run.err
        assert json.loads(run.out), words
        quiet = run_cli(*words, *(["--force"] if out in words else []), "-q")
        assert all(line.startswith("warning: ") for line in quiet.err.splitlines()), quiet.err
