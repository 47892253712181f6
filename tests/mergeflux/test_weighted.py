"""`fluxsmith mergeflux` gives the bits that mergeflux.py gives."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fluxsmith.recipes.mergeflux import BlockRatios
from mergeflux.conftest import Files, Merge, assert_same
from mergeflux.spelled_out import TYPES, weighted_merge

#: Flags and what they mean, for two models whose blocks are 0 to 4.
RATIOS: dict[str, tuple[list[str], dict[str, object]]] = {
    "equal": ([], {}),
    "base": (["--base_ratios", "0.7", "0.3"], {"base": [0.7, 0.3]}),
    "ramp": (["--start_ratios", "1", "0", "--end_ratios", "0", "1"], {"start": [1.0, 0.0], "end": [0.0, 1.0]}),
    "start only": (["--start_ratios", "0.9", "0.1"], {"start": [0.9, 0.1]}),
    "end only": (["--base_ratios", "0.6", "0.4", "--end_ratios", "0.1", "0.9"], {"base": [0.6, 0.4], "end": [0.1, 0.9]}),
    "odd numbers": (
        ["--start_ratios", "0.123456789", "0.876543211", "--end_ratios", "0.333333", "0.666667"],
        {"start": [0.123456789, 0.876543211], "end": [0.333333, 0.666667]},
    ),
    "nearly one": (["--base_ratios", "0.699995", "0.3"], {"base": [0.699995, 0.3]}),
    "negative": (["--base_ratios", "1.5", "-0.5", "--start_ratios", "0.5", "0.5"], {"base": [1.5, -0.5], "start": [0.5, 0.5]}),
    "small": (["--base_ratios", "0.999999", "0.000001"], {"base": [0.999999, 0.000001]}),
}  # fmt: skip


def flags(files: Files, names: str, *more: object) -> list[object]:
    return ["mergeflux", "--models", *files.paths(names), *more]


@pytest.mark.parametrize("models", ["a b", "d c", "e a"])
@pytest.mark.parametrize("ratios", RATIOS)
def test_ratios(files: Files, merge: Merge, models: str, ratios: str) -> None:
    given, meant = RATIOS[ratios]
    found, _ = merge(*flags(files, models, *given, "--saving_precision", "float"))
    assert_same(found, weighted_merge(files.of(models), save=torch.float32, **meant))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "blocks", [(1, 3), (2, 2), (3, 1), (-3, 40), (10, 20), (None, 2), (2, None), (0, 0), (4, 4)], ids=lambda b: f"{b[0]} to {b[1]}"
)
def test_transitions_between_blocks(files: Files, merge: Merge, blocks: tuple[int | None, int | None]) -> None:
    start, end = [0.9, 0.1], [0.0, 1.0]
    named = zip(("--start_block", "--end_block"), blocks, strict=True)
    given = [text for flag, block in named if block is not None for text in (flag, block)]
    found, _ = merge(*flags(files, "a b", "--start_ratios", *start, "--end_ratios", *end, *given, "--saving_precision", "float"))
    assert_same(found, weighted_merge(files.of("a b"), start=start, end=end, blocks=blocks, save=torch.float32))


@pytest.mark.parametrize("save", TYPES)
@pytest.mark.parametrize("compute", TYPES)
def test_types_of_calculation_and_output(files: Files, merge: Merge, compute: str, save: str) -> None:
    ratios = ["--start_ratios", "1", "0", "--end_ratios", "0.3", "0.7"]  # copied in block 0 and for keys that one lacks
    found, _ = merge(*flags(files, "d c", *ratios, "--precision", compute, "--saving_precision", save))
    arithmetic = torch.float32 if compute.startswith("fp8") else TYPES[compute]
    assert_same(found, weighted_merge(files.of("d c"), start=[1.0, 0.0], end=[0.3, 0.7], compute=arithmetic, save=TYPES[save]))


@pytest.mark.parametrize("compute", ["float", "fp16", "bf16"])
def test_three_models(files: Files, merge: Merge, compute: str) -> None:
    base, start, end = [0.2, 0.3, 0.5], [0.1, 0.1, 0.8], [0.6, 0.4, 0.0]
    found, _ = merge(
        *flags(files, "a b d", "--base_ratios", *base, "--start_ratios", *start, "--end_ratios", *end),
        "--precision", compute, "--saving_precision", "float",
    )  # fmt: skip
    expected = weighted_merge(files.of("a b d"), base, start, end, compute=TYPES[compute], save=torch.float32)
    assert_same(found, expected)


def test_order_of_the_models_is_the_order_of_the_additions(files: Files, merge: Merge) -> None:
    for names in ("a b d", "d b a"):
        found, _ = merge(*flags(files, names, "--precision", "bf16"))
        assert_same(found, weighted_merge(files.of(names), compute=torch.bfloat16))


@pytest.mark.parametrize("names", ["d", "a a", "a b c d e"])
def test_one_model_the_same_twice_and_five(files: Files, merge: Merge, names: str) -> None:
    found, _ = merge(*flags(files, names))
    assert_same(found, weighted_merge(files.of(names)))


def test_double_and_single_blocks_share_their_numbers(merge: Merge, tmp_path: Path) -> None:
    names = [f"double_blocks.{i}.w" for i in range(19)] + [f"single_blocks.{i}.w" for i in range(38)] + ["single_blocks.07.v", "blocks.3.w"]
    models = [{name: torch.full((3,), value) for name in names} for value in (1.0, 3.0)]
    for i, tensors in enumerate(models):
        save_file(tensors, tmp_path / f"{i}.safetensors")
    found, _ = merge(
        "mergeflux", "--models", tmp_path / "0.safetensors", tmp_path / "1.safetensors",
        "--start_ratios", "1", "0", "--end_ratios", "0", "1", "--saving_precision", "float",
    )  # fmt: skip
    assert found["double_blocks.18.w"][0].item() == found["single_blocks.18.w"][0].item() == pytest.approx(1 + 2 * 18 / 37)
    assert_same(found, weighted_merge(models, start=[1.0, 0.0], end=[0.0, 1.0], save=torch.float32))


def test_files_without_blocks_take_the_base_ratios(files: Files, merge: Merge) -> None:
    found, done = merge(*flags(files, "other other", "--start_block", "3", "--start_ratios", "1", "0"))
    assert_same(found, weighted_merge(files.of("other other")))
    assert "--base_ratios are used for all" in done.err


def test_tensors_larger_than_a_tile(merge: Merge, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    models = [{"double_blocks.0.x": torch.randn(1300, 1000, generator=generator).bfloat16()} for _ in range(2)]
    paths = [tmp_path / f"large_{i}.safetensors" for i in range(2)]
    for path, tensors in zip(paths, models, strict=True):
        save_file(tensors, path)
    found, _ = merge("mergeflux", "--models", *paths, "--base_ratios", "0.37", "0.63", "--saving_precision", "float")
    assert_same(found, weighted_merge(models, [0.37, 0.63], save=torch.float32))


def test_ramps_are_computed_in_fp32() -> None:
    ratios = BlockRatios((0.5, 0.5), (1.0, 0.0), (0.0, 1.0), 0, 37)
    assert f"{ratios.of_block(18)[1]:.11f}" == "0.48648649454"  # 18 / 37 is 0.48648648649 in fp64
    assert ratios.of_key("double_blocks.18.img_mlp.0.weight") == ratios.of_key("single_blocks.18.linear1.bias")
    assert ratios.of_key("transformer_blocks.18.attn.to_q.weight") == (0.5, 0.5)  # diffusers names are no blocks here


class TestWhatIsSaid:
    def test_tensors_without_any_ratio_are_left_out(self, files: Files, merge: Merge) -> None:
        found, done = merge(*flags(files, "a c", "--base_ratios", "1", "0", "--start_ratios", "0.5", "0.5", "--end_ratios", "0.5", "0.5"))
        assert "vae.decoder.conv_in.weight" not in found
        assert "1 tensor (vae.decoder.conv_in.weight) left out" in done.err

    def test_models_that_are_not_used(self, files: Files, merge: Merge) -> None:
        found, done = merge(*flags(files, "a b", "--base_ratios", "1.5", "-0.5"))
        assert "`b` is not read" in done.err
        assert_same(found, weighted_merge(files.of("a"), [1.0]))

    def test_tensors_that_some_models_lack(self, files: Files, merge: Merge) -> None:
        assert "2 tensors (first img_in.weight) missing from some models" in merge(*flags(files, "a d"))[1].err

    def test_fp8_as_type_of_the_calculation(self, files: Files, merge: Merge) -> None:
        assert "the calculation is in fp32" in merge(*flags(files, "a b", "--precision", "fp8_e4m3"))[1].err

    def test_keys_that_stand_twice_in_a_file(self, files: Files, merge: Merge, tmp_path: Path) -> None:
        path = tmp_path / "twice.safetensors"
        save_file({"x": torch.ones(2), "model.diffusion_model.x": torch.ones(2)}, path)
        assert "twice in `twice`" in merge("mergeflux", "--models", path)[1].err

    def test_integers_are_copied(self, merge: Merge, tmp_path: Path) -> None:
        paths = [tmp_path / f"ints_{i}.safetensors" for i in range(2)]
        for i, path in enumerate(paths):
            save_file({"w": torch.ones(2), "position_ids": torch.arange(300) + i}, path)
        found, done = merge("mergeflux", "--models", *paths)
        assert torch.equal(found["position_ids"], torch.arange(300))
        assert "1 tensor (position_ids) not floating point" in done.err

    def test_ratios_when_verbose(self, files: Files, merge: Merge) -> None:
        ratios = ["--start_ratios", "1", "0", "--end_ratios", "0", "1"]
        assert "ratios of block 3  0.25 0.75" in merge(*flags(files, "a b", *ratios, "-v"))[1].err
        assert "ratios of block" not in merge(*flags(files, "a b", *ratios))[1].err
