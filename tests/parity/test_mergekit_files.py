"""mergekit's YAML, run by mergekit-pytorch itself and read by us: the same tensors, or a documented difference."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fluxsmith as fs
from fluxsmith.recipes.loading import load_recipe

from .agreement import agreement

script: Any = pytest.importorskip("mergekit.scripts.merge_raw_pytorch", reason="mergekit is an oracle (pip install mergekit)")

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of a family that nobody knows: base, a and b in float32 (in bf16 many differences are equally large, and which
    of those a share keeps is arbitrary in mergekit), and the same in bf16 in a folder."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "bf16").mkdir()
    generator = torch.Generator().manual_seed(7)
    shapes = {"layers.0.weight": (40, 24), "layers.0.bias": (40,), "layers.1.weight": (24, 40), "scale": (24,)}
    base = {key: torch.randn(shape, generator=generator) * 0.05 for key, shape in shapes.items()}
    for name in ("base", "a", "b"):
        moved = {
            key: value + (0 if name == "base" else 0.02) * torch.randn(value.shape, generator=generator) for key, value in base.items()
        }
        save_file(moved, folder / f"{name}.safetensors")
        save_file({key: value.bfloat16() for key, value in moved.items()}, folder / "bf16" / f"{name}.safetensors")
    return folder


def both(text: str, models: Path, folder: Path) -> tuple[Weights, Weights]:
    """What we make of a file, and what mergekit makes of it; {m} in the text is the folder of the models."""
    from click.testing import CliRunner

    file = folder / "merge.yaml"
    file.write_text(text.replace("{m}", str(models)))
    fs.merge(load_recipe(file), folder / "ours.safetensors", force=True)
    run = CliRunner().invoke(script.main, [str(file), str(folder / "theirs")], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    return load_file(folder / "ours.safetensors"), load_file(next((folder / "theirs").glob("*.safetensors")))


LIST = "models: [{model: '{m}/a.safetensors', parameters: {weight: 0.6}}, {model: '{m}/b.safetensors', parameters: {weight: 0.3}}]\n"
PLAIN = "models: [{model: '{m}/a.safetensors'}, {model: '{m}/b.safetensors'}]\n"
ONE = "models: [{model: '{m}/a.safetensors'}]\n"
BASE = "base_model: '{m}/base.safetensors'\n"
TYPES = "dtype: float32\nout_dtype: bfloat16\n"

#: name, file, least share of equal bf16 numbers (the others are neighbours)
CASES = [
    ("linear", "merge_method: linear\n" + LIST, 0.99),
    ("linear, not normalised", "merge_method: linear\nparameters: {normalize: false}\n" + LIST, 0.99),
    ("linear with a base", "merge_method: linear\nparameters: {weight: 1}\n" + BASE + LIST, 0.98),
    ("slerp", "merge_method: slerp\nparameters: {t: 0.3}\n" + BASE + ONE, 0.99),
    ("nuslerp", "merge_method: nuslerp\n" + LIST, 0.99),
    ("nuslerp of rows", "merge_method: nuslerp\nparameters: {nuslerp_flatten: false}\n" + LIST, 0.99),
    ("nuslerp of columns", "merge_method: nuslerp\nparameters: {nuslerp_flatten: false, nuslerp_row_wise: true}\n" + LIST, 0.99),
    ("nuslerp around a base", "merge_method: nuslerp\n" + BASE + LIST, 0.99),
    ("multislerp", "merge_method: multislerp\n" + LIST, 0.99),
    ("multislerp around a base", "merge_method: multislerp\n" + BASE + LIST, 0.99),
    ("karcher", "merge_method: karcher\n" + PLAIN, 0.99),
    ("task arithmetic", "merge_method: task_arithmetic\nparameters: {lambda: 0.8}\n" + BASE + LIST, 0.99),
    ("ties", "merge_method: ties\nparameters: {density: 0.5, int8_mask: true}\n" + BASE + LIST, 0.99),
    ("ties by default", "merge_method: ties\nparameters: {normalize: false}\n" + BASE + LIST, 0.99),
    ("dare that keeps all", "merge_method: dare_ties\nparameters: {density: 1}\n" + BASE + LIST, 0.99),
    ("della that keeps all", "merge_method: della\nparameters: {density: 1}\n" + BASE + LIST, 0.99),
    ("breadcrumbs", "merge_method: breadcrumbs\nparameters: {density: 0.7, gamma: 0.1}\n" + BASE + LIST, 0.98),
    ("breadcrumbs_ties", "merge_method: breadcrumbs_ties\nparameters: {density: 0.7, gamma: 0.1}\n" + BASE + LIST, 0.98),
    ("model stock", "merge_method: model_stock\n" + BASE + PLAIN, 0.99),
    ("model stock of rows", "merge_method: model_stock\nparameters: {filter_wise: true}\n" + BASE + PLAIN, 0.99),
    ("sce", "merge_method: sce\nparameters: {select_topk: 0.6}\n" + BASE + PLAIN, 0.98),
    ("ram", "merge_method: ram\nparameters: {epsilon: 0.01}\n" + BASE + PLAIN, 0.99),
    ("ram plus", "merge_method: ramplus_tl\nparameters: {epsilon: 0.01, r: 0.5, alpha: 1}\n" + BASE + PLAIN, 0.99),
    ("arcee fusion", "merge_method: arcee_fusion\n" + BASE + ONE, 0.98),
    ("nearswap", "merge_method: nearswap\nparameters: {t: 0.01}\n" + BASE + ONE, 0.99),
    ("passthrough", "merge_method: passthrough\n" + ONE, 1.0),
    (
        "filters, first match wins",
        "merge_method: task_arithmetic\n" + BASE + "models:\n  - model: '{m}/a.safetensors'\n    parameters:\n      weight:\n"
        "        - {filter: layers.0, value: 0.25}\n        - {filter: layers, value: 0.5}\n        - {value: 1e-1}\n",
        0.99,
    ),
    (
        "a model's filters before what is said of all",
        "merge_method: task_arithmetic\n" + BASE + "models:\n  - model: '{m}/a.safetensors'\n"
        "    parameters: {weight: {filter: bias, value: 1}}\n"
        "  - model: '{m}/b.safetensors'\nparameters: {weight: 0.25}\n",
        0.99,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "share"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_its_files_give_its_tensors(models: Path, tmp_path: Path, text: str, share: float) -> None:
    found = agreement(*both(text + TYPES, models, tmp_path))
    assert found.share >= share
    assert found.far == 0


def test_without_dtype_arithmetic_is_in_float32_all_the_same(models: Path, tmp_path: Path) -> None:
    """mergekit then computes in bf16: its result is further from the exact one."""
    text = "merge_method: task_arithmetic\n" + BASE + LIST
    ours, theirs = both(text, models / "bf16", tmp_path)
    base, a, b = (load_file(models / "bf16" / f"{name}.safetensors") for name in ("base", "a", "b"))
    assert ours["scale"].dtype == theirs["scale"].dtype == torch.bfloat16
    for key, start in base.items():
        exact = start.double() + 0.6 * (a[key].double() - start.double()) + 0.3 * (b[key].double() - start.double())
        assert torch.equal(ours[key], exact.bfloat16()) or (ours[key].double() - exact).norm() < 1.01 * (exact.bfloat16() - exact).norm()
        assert (theirs[key].double() - exact).norm() > (ours[key].double() - exact).norm()


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della_linear", "della"])
def test_random_methods_agree_in_distribution(models: Path, tmp_path: Path, method: str) -> None:
    """The same share of elements is moved, and the sum of magnitudes of the moves is that of the whole delta."""
    text = f"merge_method: {method}\nparameters: {{density: 0.5, weight: 1}}\n" + BASE + ONE
    ours, theirs = both(text + "dtype: float32\n", models, tmp_path)
    base, a = (load_file(models / f"{name}.safetensors") for name in ("base", "a"))
    for key in ("layers.0.weight", "layers.1.weight"):
        start = base[key].float()
        whole = (a[key].float() - start).abs().sum()
        for result in (ours, theirs):
            moved = result[key].float() - start
            assert abs(float((moved != 0).float().mean()) - 0.5) < 0.06
            assert float(moved.abs().sum() / whole) == pytest.approx(1.0, rel=1e-3)


def test_a_gradient_runs_over_the_blocks(models: Path, tmp_path: Path) -> None:
    """mergekit-pytorch knows no layers and takes the first number everywhere. Here the blocks of the model are ramped over."""
    from support.tiny_flux import make_transformer, save_bfl, save_diffusers

    for seed, name in ((1, "x"), (2, "y")):
        save_bfl(save_diffusers(make_transformer(seed), tmp_path / name), tmp_path / f"{name}.safetensors")
    text = "merge_method: linear\nmodels:\n  - {model: '{m}/x.safetensors', parameters: {weight: [1, 0]}}\n"
    text += "  - {model: '{m}/y.safetensors', parameters: {weight: [0, 1]}}\n" + TYPES
    ours, theirs = both(text, tmp_path, tmp_path)
    x, y = (load_file(tmp_path / f"{name}.safetensors") for name in ("x", "y"))
    assert all(torch.equal(theirs[key], x[key]) for key in x)
    assert torch.equal(ours["double_blocks.0.img_mlp.0.weight"], x["double_blocks.0.img_mlp.0.weight"])
    key = "single_blocks.0.linear2.weight"  # block 2 of 5
    assert torch.equal(ours[key], ((x[key].float() + y[key].float()) / 2).bfloat16())
    assert torch.equal(ours["single_blocks.2.linear2.weight"], y["single_blocks.2.linear2.weight"])


def test_later_documents_use_earlier_ones_by_name(models: Path, tmp_path: Path) -> None:
    """mergekit-multi's files, without its intermediate files; its own command takes only language models."""
    file = tmp_path / "multi.yaml"
    first = "name: soup\nmerge_method: linear\nparameters: {weight: 1}\n" + PLAIN
    second = "merge_method: task_arithmetic\nmodels: [{model: soup, parameters: {weight: 0.5}}]\n" + BASE
    file.write_text((first + "---\n" + second + TYPES).replace("{m}", str(models)))
    fs.merge(load_recipe(file), tmp_path / "out.safetensors")
    base, a, b = (load_file(models / f"{name}.safetensors") for name in ("base", "a", "b"))
    for key, tensor in load_file(tmp_path / "out.safetensors").items():
        soup = (a[key].double() + b[key].double()) / 2
        exact = base[key].double() + 0.5 * (soup - base[key].double())
        assert (tensor.double() - exact).abs().max() <= (exact.bfloat16() - exact).abs().max() * 1.01
