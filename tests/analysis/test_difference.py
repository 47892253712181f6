"""Differences against plain torch, in every layout, for any number of threads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fluxsmith.analysis.difference import Difference, compare
from fluxsmith.cli.diff import bar
from fluxsmith.engine.streaming import Settings
from fluxsmith.errors import IncompatibleError, ResourceError
from support.cli_runs import run_cli
from support.foreign_models import save_foreign
from support.tiny_flux import TinyCheckpoints, make_transformer, save_bfl, save_diffusers, tensors_of

Tensors = dict[str, torch.Tensor]


def changed_copy(source: Path, file: Path, **changes: torch.Tensor) -> Path:
    """A file with some tensors replaced; names have `__` for dots."""
    save_file({**tensors_of(source), **{name.replace("__", "."): tensor for name, tensor in changes.items()}}, file)
    return file


def sums_of(found: Difference, name: str) -> dict[str, float]:
    return next(vars(tensor.sums) for tensor in found.tensors if tensor.name == name)


def expected(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    a, b = a.double().flatten(), b.double().flatten()
    return {
        "count": a.numel(), "aa": float((a * a).sum()), "bb": float((b * b).sum()), "ab": float((a * b).sum()),
        "dd": float(((a - b) ** 2).sum()), "conflicts": int((a * b < 0).sum()), "changed": int((a != b).sum()), "nonfinite": 0,
    }  # fmt: skip


@pytest.mark.parametrize("other", ["sharded", "comfy"])
def test_one_model_in_two_layouts_has_no_difference(tiny: TinyCheckpoints, other: str) -> None:
    found = compare(str(tiny.a), str(getattr(tiny, other)))
    assert found.identical
    assert found.equal_tensors == len(found.tensors) == 92
    assert found.total.dd == 0.0
    assert found.total.relative == 0.0
    assert found.total.cosine == 1.0
    assert found.total.aa == found.total.bb == found.total.ab > 0
    assert found.total.count == 315_184


def test_sums_are_those_of_torch_across_layouts(tiny: TinyCheckpoints) -> None:
    found = compare(str(tiny.sharded), str(tiny.b))
    a, b = tensors_of(tiny.a), tensors_of(tiny.b)
    assert {tensor.name for tensor in found.tensors} == set(a)
    for name in a:
        assert sums_of(found, name) == pytest.approx(expected(a[name], b[name]), rel=1e-12), name
    everything = [torch.cat([tensors[name].flatten() for name in sorted(a)]) for tensors in (a, b)]
    assert vars(found.total) == pytest.approx(expected(*everything), rel=1e-12)


def test_blocks_are_sums_of_their_tensors(tiny: TinyCheckpoints) -> None:
    found = compare(str(tiny.a), str(tiny.b))
    order = "time_in guidance_in vector_in txt_in img_in double.0 double.1 single.0 single.1 single.2 final_layer"
    assert list(found.blocks) == order.split()
    a, b = tensors_of(tiny.a), tensors_of(tiny.b)
    for block, stem in (("double.1", "double_blocks.1."), ("single.2", "single_blocks.2."), ("final_layer", "final_layer.")):
        whole = [torch.cat([tensors[name].flatten() for name in a if name.startswith(stem)]) for tensors in (a, b)]
        assert vars(found.blocks[block]) == pytest.approx(expected(*whole), rel=1e-12)


def test_known_changes_give_their_closed_forms(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    a = tensors_of(tiny.a)
    negated, doubled, kept = "double_blocks.0.img_attn.proj.weight", "img_in.weight", "txt_in.weight"
    one = a["txt_in.bias"].clone()
    one[3] = 0.0
    file = changed_copy(
        tiny.a,
        tmp_path / "b.safetensors",
        img_in__weight=2 * a[doubled],
        double_blocks__0__img_attn__proj__weight=-a[negated],
        txt_in__bias=one,
    )
    found = {tensor.name: tensor.sums for tensor in compare(str(tiny.sharded), str(file)).tensors}
    assert (found[doubled].relative, found[doubled].cosine, found[doubled].conflicts) == (1.0, pytest.approx(1.0), 0)
    assert (found[negated].relative, found[negated].cosine) == (2.0, pytest.approx(-1.0))
    assert found[negated].conflict_share == found[negated].changed_share == 1.0
    assert (found[kept].relative, found[kept].cosine, found[kept].changed) == (0.0, 1.0, 0)
    bias, was = found["txt_in.bias"], float(a["txt_in.bias"][3])
    assert (bias.changed, bias.conflicts, bias.changed_share) == (1, 0, 1 / 48)
    assert bias.dd == was**2
    assert bias.relative == pytest.approx(abs(was) / float(a["txt_in.bias"].double().norm()))


def test_top_is_ordered_by_relative_change(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    a = tensors_of(tiny.a)
    changes = {"img_in__weight": a["img_in.weight"] * 4, "txt_in__weight": a["txt_in.weight"] * 2, "img_in__bias": a["img_in.bias"] * -1}
    found = compare(str(tiny.a), str(changed_copy(tiny.a, tmp_path / "b.safetensors", **changes)))
    assert [tensor.name for tensor in found.top(9)] == ["img_in.weight", "img_in.bias", "txt_in.weight"]
    assert [tensor.name for tensor in found.top(1)] == ["img_in.weight"]
    assert not found.identical
    assert found.equal_tensors == 89


def test_guidance_layers_of_one_side_are_listed(tiny: TinyCheckpoints) -> None:
    found = compare(str(tiny.sharded), str(tiny.schnell))
    guidance = tuple(f"guidance_in.{layer}.{part}" for layer in ("in_layer", "out_layer") for part in ("weight", "bias"))
    assert found.only_in_a == guidance
    assert found.only_in_b == ()
    assert len(found.tensors) == 88
    assert compare(str(tiny.schnell), str(tiny.a)).only_in_b == guidance


def test_equal_where_both_have_it_is_not_identical(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in tensors_of(tiny.a).items() if "guidance" not in name}
    save_file(tensors, tmp_path / "b.safetensors")
    run = run_cli("diff", tiny.a, tmp_path / "b.safetensors")
    assert run.code == 0
    assert "the 88 tensors that both have are equal" in run.out
    assert "only in A (4)" in run.out
    assert "identical" not in run.out


def test_tensors_of_other_shapes_are_listed(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    fill = save_bfl(save_diffusers(make_transformer(1, in_channels=96, out_channels=16), tmp_path / "fill"), tmp_path / "fill.safetensors")
    found = compare(str(tiny.a), str(fill))
    assert found.other_shapes == {"img_in.weight": ((48, 16), (48, 96))}
    assert "img_in.weight" not in {tensor.name for tensor in found.tensors}
    assert "img_in.bias" in {tensor.name for tensor in found.tensors}


def big_pair(folder: Path) -> tuple[Path, Path]:
    """Two files of several tiles, which belong to no family."""
    generator = torch.Generator().manual_seed(5)
    a: Tensors = {
        f"blocks.{i}.weight": torch.randn(shape, generator=generator) for i, shape in enumerate([(1300, 1000), (2500, 1000), (7,)])
    }
    a["empty"] = torch.zeros(0)
    b = {name: tensor + torch.randn(tensor.shape, generator=generator) * 0.1 for name, tensor in a.items()}
    save_file(a, folder / "a.safetensors")
    save_file(b, folder / "b.safetensors")
    return folder / "a.safetensors", folder / "b.safetensors"


def test_numbers_do_not_depend_on_threads(tmp_path: Path) -> None:
    a, b = big_pair(tmp_path)
    one, four = (compare(str(a), str(b), settings=Settings(threads=threads)) for threads in (1, 4))
    assert one == four
    assert json.dumps(one.as_dict()) == json.dumps(four.as_dict())
    left, right = tensors_of(a), tensors_of(b)
    for name in ("blocks.0.weight", "blocks.1.weight", "blocks.2.weight"):
        assert sums_of(one, name) == pytest.approx(expected(left[name], right[name]), rel=1e-11)
    assert sums_of(one, "empty")["count"] == 0
    assert list(one.blocks) == ["blocks.0", "blocks.1", "blocks.2", "empty"]


def test_values_that_are_not_finite_are_counted_and_left_out(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    save_file({"w": torch.tensor([1.0, nan, 3.0, inf, 2.0])}, tmp_path / "a.safetensors")
    save_file({"w": torch.tensor([1.0, nan, 4.0, 5.0, nan])}, tmp_path / "b.safetensors")
    sums = sums_of(compare(str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")), "w")
    assert sums == {"count": 5, "aa": 10.0, "bb": 17.0, "ab": 13.0, "dd": 1.0, "conflicts": 0, "changed": 3, "nonfinite": 3}
    run = run_cli("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert "not finite" in run.out
    assert "3 elements are not finite" in run.out


def test_zero_tensors_and_wide_types(tmp_path: Path) -> None:
    a = {"z": torch.zeros(4), "n": torch.zeros(3), "d": torch.tensor([1 + 1e-12], dtype=torch.float64), "i": torch.tensor([2**40])}
    b = {"z": torch.zeros(4), "n": torch.ones(3), "d": torch.tensor([1.0], dtype=torch.float64), "i": torch.tensor([2**40 + 1])}
    save_file(a, tmp_path / "a.safetensors")
    save_file(b, tmp_path / "b.safetensors")
    found = compare(str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"))
    sums = {tensor.name: tensor.sums for tensor in found.tensors}
    assert (sums["z"].relative, sums["z"].cosine) == (0.0, 1.0)
    assert (sums["n"].relative, sums["n"].cosine, sums["n"].as_dict()["relative"]) == (float("inf"), None, None)
    assert (sums["d"].changed, sums["i"].changed) == (1, 1)
    assert found.top(1)[0].name == "n"


def test_other_components_are_compared_by_their_keys(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    model, vae = tensors_of(tiny.comfy), {"vae.decoder.conv_in.weight": torch.ones(4)}
    save_file({**model, **vae}, tmp_path / "all.safetensors")
    save_file({**model, "vae.decoder.conv_in.weight": 3 * torch.ones(4)}, tmp_path / "other.safetensors")
    found = compare(str(tmp_path / "all.safetensors"), str(tmp_path / "other.safetensors"))
    assert found.blocks["vae"].relative == 2.0
    assert compare(str(tmp_path / "all.safetensors"), str(tiny.sharded)).only_in_a == ("vae.decoder.conv_in.weight",)


def test_files_of_two_families_are_refused(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    other = save_foreign("flux2", tmp_path / "flux2.safetensors")
    with pytest.raises(IncompatibleError) as error:
        compare(str(tiny.a), str(other))
    assert error.value.code == "diff.different-families"


def test_adapters_are_compared_key_by_key(tmp_path: Path) -> None:
    a, b = (save_foreign(kind, tmp_path / f"{kind}.safetensors") for kind in ("lora-kohya", "lora-diffusers"))
    assert compare(str(a), str(a)).identical
    with pytest.raises(IncompatibleError) as error:
        compare(str(a), str(b))
    assert error.value.code == "diff.nothing-in-common"


def test_a_limit_of_memory_is_kept_or_refused(tiny: TinyCheckpoints) -> None:
    with pytest.raises(ResourceError):
        compare(str(tiny.a), str(tiny.b), settings=Settings(memory=10**6))


def test_command_by_block_and_by_tensor(tiny: TinyCheckpoints) -> None:
    blocks = run_cli("diff", tiny.a, tiny.b, "--top", "3")
    assert blocks.code == 0
    assert blocks.err == ""
    lines = blocks.out.splitlines()
    assert sum(line.startswith(("double.", "single.")) for line in lines) == 5
    assert lines.index("most changed tensors") + 4 == lines.index("", lines.index("most changed tensors"))
    assert "total  change 14" in lines[-1]
    tensors = run_cli("diff", tiny.a, tiny.b, "--by", "tensor").out
    assert sum("_blocks." in line for line in tensors.splitlines()) == 2 * 24 + 3 * 8
    assert "identical: all 92 tensors" in run_cli("diff", tiny.a, tiny.comfy).out


def test_json_of_the_command(tiny: TinyCheckpoints) -> None:
    facts = json.loads(run_cli("diff", tiny.a, tiny.schnell, "--json", "--top", "2").out)
    assert len(facts["top"]) == 2
    assert "tensors" not in facts
    assert [entry["block"] for entry in facts["blocks"]][-1] == "final_layer"
    assert facts["only_in_a"][0] == "guidance_in.in_layer.weight"
    facts = json.loads(run_cli("diff", tiny.a, tiny.b, "--json", "--by", "tensor", "--top", "2").out)
    assert [entry["name"] for entry in facts["tensors"]] == facts["top"]
    assert json.loads(run_cli("diff", tiny.a, tiny.comfy, "--json").out)["identical"] is True


@pytest.mark.parametrize(
    ("value", "longest", "drawn"),
    [(0.0, 1.0, ""), (1.0, 1.0, "█" * 24), (0.5, 1.0, "█" * 12), (1e-9, 1.0, "▏"), (float("inf"), 1.0, "█" * 24), (0.0, 0.0, "")],
)
def test_bars(value: float, longest: float, drawn: str) -> None:
    assert bar(value, longest) == drawn.ljust(24)
