"""Every recipe in `recipes/` runs, on the pocket models that it names (SDXL's on two tiny files of random numbers)."""

from pathlib import Path

import pytest
import torch

import fluxsmith as fs
from fluxsmith.recipes.loading import load_recipe
from support.cli_runs import run_cli
from support.tiny_flux import tensors_of

FOLDER = Path(__file__).parent.parent.parent / "recipes"
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix in (".yaml", ".mecha"))
POCKET = [path for path in FILES if "sdxl" not in path.name]


@pytest.mark.parametrize("path", POCKET, ids=lambda path: path.name)
def test_an_example_is_planned_and_merged(path: Path, tmp_path: Path) -> None:
    plan = run_cli("plan", str(path))
    assert plan.code == 0, plan.err
    out = tmp_path / "out.safetensors"
    run = run_cli("merge", str(path), "-o", str(out))
    assert run.code == 0, run.err
    tensors = tensors_of(out)
    assert len(tensors) > 90
    assert all(tensor.float().isfinite().all() for tensor in tensors.values())


def test_there_are_examples_of_every_format() -> None:
    assert len(FILES) >= 12
    assert {path.suffix for path in FILES} == {".yaml", ".mecha"}


def test_the_mecha_example_is_the_yaml_example() -> None:
    ours = fs.load_state_dict(load_recipe(FOLDER / "08_mask_as_alpha.yaml"))
    theirs = fs.load_state_dict(load_recipe(FOLDER / "12_sd_mecha.mecha"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_sdxl_example_takes_each_component_from_where_it_says(tmp_path: Path) -> None:
    from support.tiny_pipelines import PIPELINES, save_pipeline

    for name in ("one", "two"):
        save_pipeline(PIPELINES["sdxl"], tmp_path / name, seed=len(name) + ord(name[0]))
        fs.merge(str(tmp_path / name), tmp_path / f"{name}.safetensors", layout="sgm")
    paths = {name: str(tmp_path / f"{name}.safetensors") for name in ("one", "two")}
    fs.merge(load_recipe(FOLDER / "11_sdxl_components.yaml", models=paths), tmp_path / "out.safetensors")
    out, one, two = (tensors_of(tmp_path / f"{name}.safetensors") for name in ("out", "one", "two"))
    assert out.keys() == one.keys()
    for key in (key for key in out if key.startswith("first_stage_model.")):
        assert torch.equal(out[key], two[key])
    for key in (key for key in out if key.startswith("conditioner.")):
        assert torch.equal(out[key], one[key])
    key = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    assert torch.equal(out[key], torch.lerp(one[key].float(), two[key].float(), 0.7).to(one[key].dtype))


@pytest.mark.parametrize("name", ["12_sd_mecha.mecha", "13_mergekit.yaml"])
def test_foreign_files_are_checked_and_explained(name: str) -> None:
    checked = run_cli("check", str(FOLDER / name))
    assert checked.code == 0 and "3 models" in checked.out
    told = run_cli("explain", str(FOLDER / name), "single_blocks.3.linear2.weight", "-m", "faint=pocket/swapped")
    assert told.code == 0 and "swapped" in told.out
