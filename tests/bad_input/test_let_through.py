"""The other side of the table: what looks like a fault and is none, and faults that a flag lets through."""

import os
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import save_file

from bad_input.cases import Yard
from bad_input.values import FORMULAS, KEY, NAN, models_of, put_value
from support.broken_files import raw_file, write_file
from support.cli_runs import run_cli
from support.tiny_flux import tensors_of

LARGE = b"\x80\x7e"  # 8.5e37 in bf16

# Header lengths whose own bytes are the first bytes of something else: a pickle, "<" of a web page, " <" of one.
LENGTHS = {"pickle": 0x2F80, "web page": 0x2F3C, "web page after a blank": 0x3C20}


def merged(yard: Yard, *arguments: object) -> dict[str, torch.Tensor]:
    """The tensors of a merge that must work."""
    run = run_cli(*arguments)
    assert run.code == 0, run.err
    return tensors_of(yard.target)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
def test_a_header_may_begin_with_any_byte(yard: Yard, length: int) -> None:
    raw = raw_file(yard.tiny.a)
    header = raw.text().ljust(length)
    yard.broken.write_bytes(length.to_bytes(8, "little") + header.encode() + raw.data)
    assert_equal(merged(yard, *yard.merge(yard.broken)), merged(yard, *yard.merge(yard.tiny.a)))


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
def test_a_cut_file_is_told_by_its_header_not_by_its_first_byte(yard: Yard, length: int) -> None:
    yard.broken.write_bytes(length.to_bytes(8, "little") + raw_file(yard.tiny.a).text().encode()[:999])
    assert "error[file.truncated]" in run_cli(*yard.merge(yard.broken)).err


@pytest.mark.parametrize("wrap", [dict, lambda tensors: {"state_dict": tensors, "epoch": 3}], ids=["bare", "in a state_dict"])
@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "misnamed.safetensors"])
def test_an_allowed_pickle_gives_the_same_tensors(yard: Yard, name: str, wrap: Callable[[object], object]) -> None:
    file = yard.inputs / name
    torch.save(wrap(tensors_of(yard.tiny.a)), file)
    assert run_cli(*yard.merge(file)).code == 3
    assert_equal(merged(yard, *yard.merge(file, "--allow-pickle")), merged(yard, *yard.merge(yard.tiny.a)))


def test_allowing_pickles_changes_nothing_for_other_files(yard: Yard) -> None:
    expected = merged(yard, *yard.merge(yard.tiny.a))
    misnamed = yard.copy(yard.tiny.a, "model.ckpt")
    for file in (yard.tiny.a, yard.tiny.sharded, misnamed):
        assert_equal(merged(yard, *yard.merge(file, "--allow-pickle", "--layout", "bfl")), expected)


@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS)
def test_values_that_are_not_finite_can_be_allowed(yard: Yard, formula: str) -> None:
    put_value(yard, NAN, at=7)
    found = merged(yard, "merge", formula, *models_of(formula, yard), "-o", yard.target, "--force", "--allow-nonfinite")
    elsewhere = [key for key, tensor in found.items() if key != KEY and not tensor.isfinite().all()]
    assert elsewhere == []
    if "ties" not in formula and "dare" not in formula:  # a NaN may be what these trim or drop
        assert not found[KEY].flatten()[7].isfinite()


def test_an_allowed_nan_is_copied_bit_by_bit(yard: Yard) -> None:
    odd = b"\xa5\xff"  # a NaN with a sign and a payload
    put_value(yard, odd, at=7)
    merged(yard, "merge", "a", "-m", f"a={yard.broken}", "-o", yard.target, "--force", "--allow-nonfinite")
    assert raw_file(yard.target).part(KEY)[2][14:16] == odd


def test_shards_may_be_links(yard: Yard) -> None:
    """The cache of huggingface_hub is a folder of links to blobs without suffix."""
    folder, blobs = yard.copy(yard.tiny.sharded, "snapshot"), yard.inputs / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        os.rename(file, blobs / str(number))
        file.symlink_to(f"../blobs/{number}")
    assert_equal(merged(yard, *yard.merge(folder)), merged(yard, *yard.merge(yard.tiny.a, "--layout", "diffusers")))


def test_anchors_and_merge_keys_of_yaml(yard: Yard) -> None:
    text = """\
fluxsmith: 1
models: {a: {a}, b: {b}}
merge:
  method: ties
  base: a
  inputs: [b]
  density: &d {default: 0.5, double: 0.3}
  rules:
    - {match: "final_layer.*", method: ties, base: a, inputs: [b], density: {<<: *d, final_layer.linear.weight: 0.1}}
"""
    assert merged(yard, *yard.recipe(text))


@pytest.mark.parametrize("policy", ["drop", "keep", "zero", "bake(3.5)", "from(a)", "from(b)"])
def test_a_guidance_policy_settles_the_mismatch(yard: Yard, policy: str) -> None:
    found = merged(yard, *yard.merge(yard.tiny.schnell, "--guidance", policy))
    assert ("guidance_in.in_layer.weight" in found) == (policy in ("keep", "zero", "from(b)"))


def test_force_replaces_a_folder_and_all_of_its_shards(yard: Yard) -> None:
    output = yard.target.parent / "folder"
    many = run_cli(*yard.merge(yard.tiny.sharded, "--shard-size", "50KB", output=output))
    assert many.code == 0, many.err
    assert len(list(output.glob("*.safetensors"))) > 5
    few = run_cli(*yard.merge(yard.tiny.sharded, "--shard-size", "1GB", output=output))
    assert few.code == 0, few.err
    assert sorted(path.name for path in output.iterdir()) == [
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "report.html",
    ]
    assert sorted(path.name for path in output.parent.iterdir()) == ["folder", "merged.safetensors", "neighbour.txt"]


def test_an_empty_folder_is_filled_without_force(yard: Yard) -> None:
    output = yard.target.parent / "folder"
    output.mkdir()
    arguments = [word for word in yard.merge(yard.tiny.a, output=output) if word != "--force"]
    assert run_cli(*arguments).code == 0
    assert (output / "model.safetensors").exists()


@pytest.mark.parametrize("output", [".", "../here", "sub/.."])
def test_the_folder_that_one_stands_in_is_a_target(yard: Yard, monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    here = yard.root / "here"
    here.mkdir()
    if output == "sub/..":
        (here / "sub").mkdir()
    monkeypatch.chdir(here)
    run = run_cli(*yard.merge(yard.tiny.a, output=output))
    if output == "sub/..":  # not empty, and what is in it is no checkpoint
        assert (run.code, "error[output.not-replaceable]" in run.err) == (2, True)
    else:
        assert run.code == 0, run.err
        assert sorted(path.name for path in here.iterdir()) == ["README.md", "model.safetensors", "report.html"]
    assert sorted(path.name for path in yard.root.iterdir()) == ["here", "inputs", "out"]


def test_outputs_may_lie_beside_their_inputs(yard: Yard) -> None:
    model = yard.copy(yard.tiny.a, "model.safetensors")
    output = model.with_name("merged.safetensors")
    assert run_cli(*yard.merge(model, output=output)).code == 0
    assert sorted(path.name for path in yard.inputs.iterdir()) == ["merged.report.html", "merged.safetensors", "model.safetensors"]


def test_a_merge_that_changes_nothing_is_named(yard: Yard) -> None:
    run = run_cli(*yard.merge(yard.tiny.a, b=yard.copy(yard.tiny.a)))
    assert run.code == 0
    assert "warning: the result is equal to `a`" in run.err
    assert "warning: the result is equal to `b`" in run.err


@pytest.mark.parametrize("dtype", ["fp16", "fp8_e4m3", "fp8_e5m2"])
def test_values_too_large_for_the_type_are_counted(yard: Yard, dtype: str) -> None:
    put_value(yard, LARGE, at=7)
    run = run_cli("merge", "a", "-m", f"a={yard.broken}", "-o", yard.target, "--force", "--dtype", dtype)
    assert run.code == 0, run.err
    assert f"warning: 1 values in 1 tensors were too large for the type and became its largest (most in {KEY})" in run.err
    found = tensors_of(yard.target)[KEY].float().flatten()
    assert found[7] == torch.finfo(tensors_of(yard.target)[KEY].dtype).max
    assert found.isfinite().all()


def test_float32_that_bf16_cannot_hold_is_counted(yard: Yard) -> None:
    """The largest values of float32 would be rounded to infinity."""
    save_file({"x": torch.tensor([3.4e38, -3.4e38, 1.0])}, yard.broken)
    run = run_cli("merge", "a", "-m", f"a={yard.broken}", "-o", yard.target, "--force", "--dtype", "bf16")
    assert run.code == 0, run.err
    assert "warning: 2 values in 1 tensors were too large" in run.err
    largest = torch.finfo(torch.bfloat16).max
    assert tensors_of(yard.target)["x"].tolist() == [largest, -largest, 1.0]


def test_unaligned_headers_are_read(yard: Yard) -> None:
    """Other writers do not pad the header to a multiple of eight."""
    raw = raw_file(yard.tiny.a)
    header = raw.text() + " " * (1 - len(raw.text()) % 2)
    yard.broken.write_bytes(len(header).to_bytes(8, "little") + header.encode() + raw.data)
    assert len(header) % 2 == 1
    assert_equal(merged(yard, *yard.merge(yard.broken)), merged(yard, *yard.merge(yard.tiny.a)))


def test_tensors_of_no_elements_are_kept(yard: Yard) -> None:
    """Key by key, a tensor of no elements is a tensor."""
    raw = raw_file(yard.tiny.a).with_tensors({"x": ("F32", [2], bytes(8)), "nothing": ("F32", [0, 4], b""), "one": ("F32", [], bytes(4))})
    for name in ("a.safetensors", "b.safetensors"):
        write_file(yard.inputs / name, raw)
    found = merged(yard, *yard.merge(yard.inputs / "a.safetensors", b=yard.inputs / "b.safetensors"))
    assert {key: tuple(tensor.shape) for key, tensor in found.items()} == {"x": (2,), "nothing": (0, 4), "one": ()}
