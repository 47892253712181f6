"""The commands around the numbers: metadata, the recipe in the output, help, errors and their exit codes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fluxsmith.engine.merging import merge as run_recipe
from fluxsmith.io.opening import open_checkpoint
from fluxsmith.recipes.loading import recipe_from_text
from fluxsmith.recipes.mergeflux import DeltaMerge, WeightedMerge, delta_recipe, weighted_recipe
from fluxsmith.recipes.saving import recipe_to_text
from mergeflux.conftest import Files, Merge, assert_same, metadata_of
from support.cli_runs import run_cli, start_cli


class TestMetadata:
    def test_of_the_weighted_merge(self, files: Files, merge: Merge, tmp_path: Path) -> None:
        paths = [str(path) for path in files.paths("a b")]
        merge(
            "mergeflux", "--models", *paths, "--start_ratios", "1", "0", "--end_ratios", "0.25", "0.75", "--start_block", "1",
            "--precision", "fp16", "--saving_precision", "fp8_e4m3", "--save-metadata",
        )  # fmt: skip
        found = metadata_of(tmp_path / "out.safetensors")
        expected = {
            "merged_from": json.dumps(paths), "base_ratios": "[0.5, 0.5]", "start_ratios": "[1.0, 0.0]",
            "end_ratios": "[0.25, 0.75]", "start_block": "1", "end_block": "4",
            "calculation_precision": "fp16", "saving_precision": "fp8_e4m3",
        }  # fmt: skip
        assert {key: value for key, value in found.items() if "." not in key and key != "format"} == expected
        assert "fluxsmith.recipe" in found

    def test_of_the_delta_merge(self, files: Files, merge: Merge, tmp_path: Path) -> None:
        base, *paths = [str(path) for path in files.paths("base a b")]
        merge("mergeflux-delta", "--base_model", base, "--models", *paths, "--task_weights", "0.7", "1", "--save-metadata")
        found = metadata_of(tmp_path / "out.safetensors")
        expected = {
            "base_model": base, "merged_models": json.dumps(paths), "task_weights": "[0.699999988079071, 1.0]",
            "prune_method": "magnitude", "merge_method": "disjoint_merge", "density": "0.5", "majority_sign_method": "total",
            "calculation_precision": "float", "saving_precision": "bf16",
        }  # fmt: skip
        assert {key: value for key, value in found.items() if "." not in key and key != "format"} == expected

    def test_task_weights_are_those_of_the_calculation(self, files: Files) -> None:
        opened = [open_checkpoint(path) for path in files.paths("base a")]
        for precision, expected in {"float": 0.699999988079071, "fp16": 0.7001953125, "bf16": 0.69921875}.items():
            wish = DeltaMerge("base", ["a"], task_weights=[0.7], precision=precision, save_metadata=True)
            assert json.loads(delta_recipe(wish, opened).recipe.metadata["task_weights"]) == [expected]

    def test_is_left_out_unless_it_is_asked_for(self, files: Files, merge: Merge, tmp_path: Path) -> None:
        merge("mergeflux", "--models", *files.paths("a b"))
        assert not {"merged_from", "base_ratios"} & metadata_of(tmp_path / "out.safetensors").keys()

    def test_files_without_blocks(self, files: Files, merge: Merge, tmp_path: Path) -> None:
        merge("mergeflux", "--models", *files.paths("other other"), "--start_block", "3", "--save-metadata")
        found = metadata_of(tmp_path / "out.safetensors")
        assert (found["start_block"], found["end_block"]) == ("-1", "-1")


class TestRecipe:
    """The recipe that an output carries makes the same bytes again."""

    def wishes(self, files: Files) -> dict[str, WeightedMerge | DeltaMerge]:
        a, b, c, d, base = (str(files.path(name)) for name in ("a", "b", "c", "d", "base"))
        return {
            "ramp": WeightedMerge([a, b, d], [0.2, 0.3, 0.5], [0.1, 0.1, 0.8], [0.7, 0.3, 0.0], 1, 3),
            "unused": WeightedMerge([a, b], [1.5, -0.5], precision="fp16", saving_precision="fp8_e5m2"),
            "same file": WeightedMerge([a, a], [1e-5, 0.99999]),
            "ties": DeltaMerge(base, [a, b], density=0.3, task_weights=[0.7, -1.1], majority_sign_method="frequency"),
            "dare": DeltaMerge(base, [a, c], "random", "sum", 0.4, precision="bf16", saving_precision="float", seed=11),
            "mean": DeltaMerge(d, [a, c], "none", "mean", precision="fp16", saving_precision="fp16"),
        }

    @pytest.mark.parametrize("name", ["ramp", "unused", "same file", "ties", "dare", "mean"])
    def test_round_trip(self, files: Files, tmp_path: Path, name: str) -> None:
        wish = self.wishes(files)[name]
        if isinstance(wish, WeightedMerge):
            recipe = weighted_recipe(wish, [open_checkpoint(Path(model)) for model in wish.models]).recipe
        else:
            recipe = delta_recipe(wish, [open_checkpoint(Path(model)) for model in (wish.base_model, *wish.models)]).recipe
        again = recipe_from_text(recipe_to_text(recipe), "recipe.yaml")
        assert recipe_to_text(again) == recipe_to_text(recipe)
        for made, file in ((recipe, "first"), (again, "second")):
            run_recipe(made, tmp_path / f"{file}.safetensors")
        assert (tmp_path / "first.safetensors").read_bytes() == (tmp_path / "second.safetensors").read_bytes()

    def test_of_many_blocks(self, tmp_path: Path) -> None:
        for name, value in (("a", 1.0), ("b", 2.0)):
            save_file({f"{kind}_blocks.{i}.w": torch.full((2,), value) for kind, n in (("double", 19), ("single", 38)) for i in range(n)},
                      tmp_path / f"{name}.safetensors")  # fmt: skip
        paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
        wish = WeightedMerge([str(p) for p in paths], [0.5, 0.5], [1.0, 0.0], [0.25, 0.75], 37, 1)
        recipe = weighted_recipe(wish, [open_checkpoint(p) for p in paths]).recipe
        again = recipe_from_text(recipe_to_text(recipe), "recipe.yaml")
        run_recipe(again, tmp_path / "out.safetensors")
        found = load_file(tmp_path / "out.safetensors")
        assert {key: tensor[0].item() for key, tensor in found.items()} == {
            key: 1.75 if int(key.split(".")[1]) >= 37 else 1.0 for key in found
        }

    def test_reproduce_makes_the_same_file(self, files: Files, merge: Merge, tmp_path: Path) -> None:
        merge("mergeflux", "--models", *files.paths("a b"), "--start_ratios", "1", "0", "--save-metadata")
        made = tmp_path / "out.safetensors"
        done = run_cli("reproduce", made, "-o", tmp_path / "again.safetensors")
        assert done.code == 0, done.err
        assert made.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


class TestOutput:
    def test_gets_its_suffix(self, files: Files, tmp_path: Path) -> None:
        assert run_cli("mergeflux", "--models", *files.paths("a b"), "--output", tmp_path / "v1.0").code == 0
        assert (tmp_path / "v1.0.safetensors").is_file()

    def test_is_replaced_only_by_force(self, files: Files, tmp_path: Path) -> None:
        target = tmp_path / "out.safetensors"
        target.write_bytes(b"precious")
        arguments = ["mergeflux", "--models", *files.paths("a b"), "--output", target]
        done = run_cli(*arguments)
        assert (done.code, target.read_bytes()) == (2, b"precious")
        assert "output.exists" in done.err
        assert run_cli(*arguments, "--force").code == 0
        assert_same(load_file(target), load_file(target))

    def test_as_json(self, files: Files, tmp_path: Path) -> None:
        done = run_cli("mergeflux", "--models", *files.paths("a b"), "--output", tmp_path / "out", "--json")
        assert json.loads(done.out)["output"] == str(tmp_path / "out.safetensors")

    def test_quiet_says_nothing_where_all_is_well(self, files: Files, tmp_path: Path) -> None:
        assert run_cli("mergeflux", "--models", *files.paths("a base"), "--output", tmp_path / "out", "-q").err == ""

    def test_says_where_it_computes(self, files: Files, tmp_path: Path) -> None:
        err = run_cli("mergeflux", "--models", *files.paths("a base"), "--output", tmp_path / "out").err
        assert err.startswith("device  ")
        assert "device  " not in run_cli("mergeflux", "--models", *files.paths("a base"), "--output", tmp_path / "o", "--device", "cpu").err


#: What is wrong -> flags, exit code and code of the error. MergeFlux leaves with 0 after all but the last two.
WRONG: dict[str, tuple[str, int, str]] = {
    "too few ratios": ("mergeflux --models a b --output OUT --base_ratios 1", 2, "usage.ratio-count"),
    "ratios that add up to more": ("mergeflux --models a b --output OUT --start_ratios 0.5 0.6", 2, "usage.ratio-sum"),
    "ratios that nearly add up": ("mergeflux --models a b --output OUT --end_ratios 0.5 0.49998", 2, "usage.ratio-sum"),
    "ratios that are no numbers": ("mergeflux --models a b --output OUT --end_ratios nan 1", 2, "usage.ratio-sum"),
    "a file that is missing": ("mergeflux --models a nothing --output OUT", 3, "file.not-found"),
    "a file that is none": ("mergeflux --models a text --output OUT", 3, "file."),
    "another shape": ("mergeflux --models a narrow --output OUT", 4, "model.wrong-shape"),
    "a shape that would broadcast": ("mergeflux --models a broadcast --output OUT", 4, "model.wrong-shape"),
    "another shape in a delta": ("mergeflux-delta --base_model a --models narrow --output OUT", 4, "model.wrong-shape"),
    "a base that is missing": ("mergeflux-delta --base_model nothing --models a --output OUT", 3, "file.not-found"),
    "a model that fits nowhere": ("mergeflux-delta --base_model base --models a other --output OUT", 4, "recipe.no-contribution"),
    "ratios for what nobody has": ("mergeflux --models a other --output OUT --base_ratios 0 1 --start_ratios 0 1", 0, ""),
    "scaled fp8": ("mergeflux --models a scaled --output OUT", 4, "quantised.plain-weight"),
    "a value that is none": ("mergeflux --models a holes --output OUT", 4, "values.not-finite"),
    "a value that is none, and may be": ("mergeflux --models a holes --output OUT --allow-nonfinite", 0, ""),
    "an output that is an input": ("mergeflux --models a b --output a --force", 4, "output.is-input"),
    "no cuda": ("mergeflux --models a b --output OUT --device cuda", 2, "usage.no-device"),
    "a density that is no number": ("mergeflux-delta --base_model base --models a --output OUT --density nan", 2, "usage.bad-density"),
    "a weight that is infinite": ("mergeflux-delta --base_model base --models a --output OUT --task_weights inf", 2, "usage.bad-weight"),
    "a weight too large for fp16": (
        "mergeflux-delta --base_model base --models a --output OUT --task_weights 1e5 --precision fp16", 2, "usage.bad-weight",
    ),
    "too many weights": ("mergeflux-delta --base_model base --models a --output OUT --task_weights 1 2", 2, "usage.weight-count"),
    "no thread": ("mergeflux --models a b --output OUT --threads 0", 2, "usage.flags"),
    "a flag that is unknown": ("mergeflux --models a b --output OUT --saving-precision bf16", 2, "did you mean `--saving_precision`?"),
    "a flag that is missing": ("mergeflux-delta --models a b --output OUT", 2, "--base_model"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_errors_leave_with_their_exit_code_and_no_output(files: Files, tmp_path: Path, what: str) -> None:
    if what == "no cuda" and torch.cuda.is_available():
        pytest.skip("there is a cuda device here")
    line, code, said = WRONG[what]
    (tmp_path / "text.safetensors").write_text("not a checkpoint" * 10)
    save_file({"img_in.weight": torch.zeros(8, 4)}, tmp_path / "narrow.safetensors")
    save_file({"img_in.weight": torch.zeros(1, 3)}, tmp_path / "broadcast.safetensors")
    save_file({"img_in.weight": torch.full((8, 3), float("nan"))}, tmp_path / "holes.safetensors")
    save_file({"img_in.weight": torch.zeros(8, 3), "img_in.scale_weight": torch.full((1,), 0.5)}, tmp_path / "scaled.safetensors")
    places = {name: files.path(name) for name in files.tensors} | {"OUT": tmp_path / "out"}
    places |= {name: tmp_path / f"{name}.safetensors" for name in ("nothing", "text", "narrow", "broadcast", "holes", "scaled")}
    done = run_cli(*(places.get(word, word) for word in line.split()))
    assert done.code == code, done.err
    assert said in done.err
    assert (tmp_path / "out.safetensors").exists() == (code == 0)


def test_exit_codes_of_a_real_process(files: Files, tmp_path: Path) -> None:
    process = start_cli("mergeflux", "--models", *files.paths("a b"), "--output", tmp_path / "out", "--base_ratios", "1")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith("error[usage.ratio-count]")
    assert "Traceback" not in err


WEIGHTED_FLAGS = (
    "--models --output --base_ratios --start_ratios --end_ratios --start_block --end_block --device --precision --saving_precision "
    "--save-metadata -v --verbose"
)
DELTA_FLAGS = (
    "--base_model --models --output --prune_method --merge_method --density --task_weights --majority_sign_method --device --precision "
    "--saving_precision --save-metadata -v --verbose --seed"
)


@pytest.mark.parametrize(("name", "flags"), [("mergeflux", WEIGHTED_FLAGS), ("mergeflux-delta", DELTA_FLAGS)])
@pytest.mark.parametrize("asked", ["--help", "-h"])
def test_help_lists_every_flag_its_default_and_examples(name: str, flags: str, asked: str) -> None:
    done = run_cli(name, asked)
    assert done.code == 0
    text = " ".join(done.out.split())
    for flag in (*flags.split(), "--force", "--json", "--quiet"):
        assert f" {flag}" in text.partition("options:")[2]
    for default in ("(default: float)", "(default: bf16)", "(default: cuda where there is one, else cpu)"):
        assert default in text
    assert f"fluxsmith {name} --" in text.partition("examples:")[2]
