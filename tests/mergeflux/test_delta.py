"""`fluxsmith mergeflux-delta` gives the bits that mergeflux-delta.py gives; random pruning its statistics."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergeflux.conftest import Files, Merge, assert_same
from mergeflux.spelled_out import TYPES, delta_merge

COMBINATIONS = [("sum", "total"), ("mean", "total"), ("disjoint_merge", "total"), ("disjoint_merge", "frequency")]


def flags(files: Files, base: str, models: str, *more: object) -> list[object]:
    return ["mergeflux-delta", "--base_model", files.path(base), "--models", *files.paths(models), *more]


@pytest.mark.parametrize("density", [None, 0.0, 0.01, 0.2, 0.5, 0.9, 1.0], ids=lambda d: "no pruning" if d is None else f"density {d}")
@pytest.mark.parametrize(("combine", "sign"), COMBINATIONS)
def test_prunings_and_combinations(files: Files, merge: Merge, combine: str, sign: str, density: float | None) -> None:
    weights = [0.7, 1.3]
    given = ["--prune_method", "none"] if density is None else ["--density", density]
    found, _ = merge(
        *flags(files, "base", "a d", *given, "--merge_method", combine, "--majority_sign_method", sign),
        "--task_weights", *weights, "--saving_precision", "float",
    )  # fmt: skip
    prune = "none" if density is None else "magnitude"
    expected = delta_merge(files.tensors["base"], files.of("a d"), prune, combine, density or 0.0, weights, sign, save=torch.float32)
    assert_same(found, expected)


@pytest.mark.parametrize(("combine", "sign"), COMBINATIONS)
@pytest.mark.parametrize("save", ["float", "fp16", "bf16"])
@pytest.mark.parametrize("compute", ["float", "fp16", "bf16"])
@pytest.mark.parametrize("prune", ["none", "magnitude"])
def test_types_of_calculation_and_output(files: Files, merge: Merge, prune: str, compute: str, save: str, combine: str, sign: str) -> None:
    weights = [0.7, -1.3, 0.1]
    found, _ = merge(
        *flags(files, "b", "a c d", "--prune_method", prune, "--merge_method", combine, "--majority_sign_method", sign),
        "--task_weights", *weights, "--precision", compute, "--saving_precision", save,
    )  # fmt: skip
    expected = delta_merge(files.tensors["b"], files.of("a c d"), prune, combine, 0.5, weights, sign, TYPES[compute], TYPES[save])
    assert_same(found, expected)


def test_the_defaults_are_ties(files: Files, merge: Merge) -> None:
    found, _ = merge(*flags(files, "base", "a b"))
    assert_same(found, delta_merge(files.tensors["base"], files.of("a b"), "magnitude", "disjoint_merge", 0.5, None, "total"))


def test_fp8_can_be_read_and_written(files: Files, merge: Merge) -> None:
    found, _ = merge(*flags(files, "e", "a c", "--precision", "fp8_e5m2", "--saving_precision", "fp8_e4m3"))
    assert_same(found, delta_merge(files.tensors["e"], files.of("a c"), save=torch.float8_e4m3fn))


def test_one_model_and_four(files: Files, merge: Merge) -> None:
    for names in ("d", "a b c d"):
        for combine in ("sum", "mean", "disjoint_merge"):
            found, _ = merge(*flags(files, "base", names, "--merge_method", combine, "--saving_precision", "float"))
            assert_same(found, delta_merge(files.tensors["base"], files.of(names), "magnitude", combine, save=torch.float32))


def test_tensors_larger_than_a_tile(merge: Merge, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    models = [{"x": torch.randn(1100, 1000, generator=generator).bfloat16()} for _ in range(3)]
    paths = [tmp_path / f"large_{i}.safetensors" for i in range(3)]
    for path, tensors in zip(paths, models, strict=True):
        save_file(tensors, path)
    found, _ = merge("mergeflux-delta", "--base_model", paths[0], "--models", *paths[1:], "--density", "0.3")
    assert_same(found, delta_merge(models[0], models[1:], density=0.3))


def _write(folder: Path, **values: list[float]) -> dict[str, Path]:
    paths = {name: folder / f"{name}.safetensors" for name in values}
    for name, numbers in values.items():
        save_file({"x": torch.tensor(numbers, dtype=torch.float32)}, paths[name])
    return paths


def test_the_documented_example(merge: Merge, tmp_path: Path) -> None:
    p = _write(tmp_path, zero=[0.0] * 10, one=[1, -1, 2, -2, 3, -3, 4, -4, 5, -5], two=[-1, 1, 2, -2, 3, -3, 4, -4, 5, 5])
    found, _ = merge("mergeflux-delta", "--base_model", p["zero"], "--models", p["one"], p["two"], "--saving_precision", "float")
    assert found["x"].tolist() == [0, 0, 0, 0, 3, -3, 4, -4, 5, 5]


def test_mean_counts_models_that_lack_a_tensor_and_disjoint_does_not(merge: Merge, tmp_path: Path) -> None:
    p = _write(tmp_path, base=[1.0, 1.0], tuned=[3.0, 3.0], second=[5.0, 5.0])
    for name, value in (("base", 1.0), ("tuned", 3.0)):
        save_file(load_file(p[name]) | {"y": torch.tensor([value])}, p[name])
    arguments = ["mergeflux-delta", "--base_model", p["base"], "--models", p["tuned"], p["second"], "--prune_method", "none"]
    assert merge(*arguments, "--merge_method", "mean")[0]["y"].item() == 2
    assert merge(*arguments, "--merge_method", "disjoint_merge")[0]["y"].item() == 3


class TestRandomPruning:
    """Each element of each delta is kept with the density and divided by it, by a seed, a name and a place."""

    COUNT = 200_000
    DENSITY = 0.3

    def merged(self, merge: Merge, folder: Path, *more: object) -> dict[str, Tensor]:
        for name, value in (("base", 0.0), ("one", 1.0), ("two", 16.0)):
            save_file({key: torch.full((self.COUNT,), value) for key in ("x", "y")}, folder / f"{name}.safetensors")
        files = Files(folder, {})
        given = ["--prune_method", "random", "--merge_method", "sum", "--density", self.DENSITY, "--saving_precision", "float"]
        return merge(*flags(files, "base", "one two", *given, *more))[0]

    @staticmethod
    def kept(merged: Tensor, density: float) -> tuple[Tensor, Tensor]:
        """Which elements of the first and of the second model are in a sum of (0 or 1) + (0 or 16)."""
        sums = (merged * density).round().to(torch.int64)
        assert set(sums.unique().tolist()) == {0, 1, 16, 17}  # what is kept is divided by the density, exactly so
        return sums % 2 == 1, sums >= 16

    def test_share_scale_and_independence(self, merge: Merge, tmp_path: Path) -> None:
        found = self.merged(merge, tmp_path)
        one, two = self.kept(found["x"], self.DENSITY)
        error = 5 * (self.DENSITY * (1 - self.DENSITY) / self.COUNT) ** 0.5
        assert abs(one.float().mean().item() - self.DENSITY) < error
        assert abs(two.float().mean().item() - self.DENSITY) < error
        assert abs((one & two).float().mean().item() - self.DENSITY**2) < error
        other, _ = self.kept(found["y"], self.DENSITY)
        assert abs((one & other).float().mean().item() - self.DENSITY**2) < error

    def test_a_seed_decides_the_mask(self, merge: Merge, tmp_path: Path) -> None:
        first = self.merged(merge, tmp_path, "--seed", "7")
        assert_same(self.merged(merge, tmp_path, "--seed", "7", "--threads", "1"), first)
        other = self.merged(merge, tmp_path, "--seed", "8")
        assert not torch.equal(other["x"], first["x"])
        assert not torch.equal(first["x"], first["y"])

    @pytest.mark.parametrize(("density", "expected"), [("0", 0.0), ("1", 17.0)])
    def test_nothing_and_all(self, merge: Merge, tmp_path: Path, density: str, expected: float) -> None:
        assert self.merged(merge, tmp_path, "--density", density)["x"].unique().tolist() == [expected]

    @pytest.mark.parametrize("combine", ["mean", "disjoint_merge"])
    def test_other_combinations_of_the_same_masks(self, merge: Merge, tmp_path: Path, combine: str) -> None:
        one, two = self.kept(self.merged(merge, tmp_path)["x"], self.DENSITY)
        a, b = one / self.DENSITY, two * 16 / self.DENSITY
        count = torch.tensor(2.0) if combine == "mean" else (one.float() + two.float()).clamp(min=1)
        torch.testing.assert_close(self.merged(merge, tmp_path, "--merge_method", combine)["x"], (a + b) / count)


class TestWhatIsSaid:
    def test_tensors_of_the_models_only(self, files: Files, merge: Merge) -> None:
        found, done = merge(*flags(files, "base", "a c"))
        assert found.keys() == files.tensors["base"].keys()
        assert "1 tensor (vae.decoder.conv_in.weight) in the models only: left out" in done.err

    def test_tensors_that_a_model_lacks(self, files: Files, merge: Merge) -> None:
        assert "1 tensor (guidance_in.in_layer.weight) missing from `b`" in merge(*flags(files, "base", "a b"))[1].err

    @pytest.mark.parametrize(("given", "used"), [("1.7", "1"), ("-0.2", "0")])
    def test_a_density_that_is_no_share(self, files: Files, merge: Merge, given: str, used: str) -> None:
        found, done = merge(*flags(files, "base", "a", "--density", given))
        assert f"is taken as {used}" in done.err
        assert_same(found, delta_merge(files.tensors["base"], files.of("a"), density=float(given)))
