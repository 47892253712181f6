"""What a recipe file is put together from: includes, other recipes, options per input, nodes as options, parts of models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import fluxsmith as fs
from fluxsmith.errors import RecipeError
from fluxsmith.recipes.loading import load_recipe

Weights = dict[str, Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three models a, b, c of random numbers, b without `extra`; a mask."""
    generator = torch.Generator().manual_seed(2)
    for name in "abc":
        tensors = {key: torch.randn(6, 8, generator=generator) for key in ("w", "v", "extra")}
        save_file({k: t for k, t in tensors.items() if name != "b" or k != "extra"}, tmp_path / f"{name}.safetensors")
    return tmp_path


def weights(folder: Path) -> tuple[Weights, Weights, Weights]:
    from safetensors.torch import load_file

    a, b, c = (load_file(folder / f"{name}.safetensors") for name in "abc")
    return a, b, c


def run(folder: Path, text: str, *names: str) -> Weights:
    """The tensors of a recipe over the models of the folder."""
    models = "".join(f"  {name}: {folder}/{name}.safetensors\n" for name in names or ("a", "c"))
    file = folder / "recipe.yaml"
    file.write_text(f"fluxsmith: 1\nmodels:\n{models}{text}")
    return fs.load_state_dict(load_recipe(file))


def test_models_and_steps_of_included_files_are_known(folder: Path) -> None:
    (folder / "more").mkdir()
    (folder / "more" / "deep.yaml").write_text(f"fluxsmith: 1\nmodels: {{c: {folder}/c.safetensors, unused: nowhere}}\n")
    (folder / "more" / "steps.yaml").write_text('fluxsmith: 1\ninclude: [deep.yaml]\nsteps: {moved: "a + 0.5*(c - a)", idle: a}\n')
    found = run(folder, "include: [more/steps.yaml]\nmerge: moved\n", "a")
    a, _, c = weights(folder)
    assert all(torch.allclose(found[k], (a[k] + c[k]) / 2, atol=1e-6) for k in a)


def test_the_result_of_a_recipe_is_a_model(folder: Path) -> None:
    (folder / "soup.yaml").write_text(
        f"fluxsmith: 1\nmodels: {{a: {folder}/a.safetensors, x: {folder}/c.safetensors}}\nmerge: {{method: linear, inputs: [a, x]}}\n"
    )
    found = run(folder, "  soup: {recipe: soup.yaml}\nmerge: 0.5*soup + 0.5*a\n", "a")
    a, _, c = weights(folder)
    assert all(torch.allclose(found[k], 0.75 * a[k] + 0.25 * c[k], atol=1e-6) for k in a)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("soup.mecha", 'version 0.1.0\nmodel "{m}/a.safetensors"\nmodel "{m}/c.safetensors"\nmerge "weighted_sum" &0 &1 0.5\n'),
        ("soup.yaml", "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: {m}/a.safetensors}, {model: {m}/c.safetensors}]\n"),
    ],
)
def test_a_foreign_recipe_is_a_model(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text.replace("{m}", str(folder)))
    found = run(folder, f"  soup: {{recipe: {name}}}\nmerge: 0.5*soup + 0.5*a\n", "a")
    a, _, c = weights(folder)
    assert all(torch.allclose(found[k], 0.75 * a[k] + 0.25 * c[k], atol=1e-6) for k in a)


def test_an_option_is_said_per_input(folder: Path) -> None:
    text = "merge:\n  method: ties\n  base: a\n  density: 1\n  inputs: [{model: b, density: 0.25}, c]\n  missing: base\n"
    with pytest.raises(RecipeError, match="twice"):
        run(folder, text, "a", "b", "c")
    found = run(folder, text.replace("  density: 1\n", "").replace(", c]", ", {model: c, density: 1.0}]"), "a", "b", "c")
    a, b, c = (fs.state_dict(w, name=n) for w, n in zip(weights(folder), "abc", strict=True))
    expected = fs.load_state_dict(fs.recipes.Recipe(fs.ties(a, b, c, density=[0.25, 1.0]), missing="base"))
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_an_input_that_says_nothing_has_the_default(folder: Path) -> None:
    found = run(folder, "merge: {method: ties, base: a, inputs: [{model: c, density: 0.25}, a]}\n")
    a, _, c = (fs.state_dict(w, name=n) for w, n in zip(weights(folder), "abc", strict=True))
    expected = fs.load_state_dict(fs.ties(a, c, a, density=[0.25, 0.5]))
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_an_option_is_a_node(folder: Path) -> None:
    steps = "steps:\n  mask: {method: train_difference_mask, inputs: [a, c, b]}\n"
    found = run(folder, steps + "merge: {method: weighted_sum, inputs: [a, c], alpha: {model: mask}, missing: skip}\n", "a", "c", "b")
    a, b, c = weights(folder)
    for key in ("w", "v"):
        mask = 1.8 * (c[key] - a[key]).abs() / ((c[key] - a[key]).abs() + (c[key] - b[key]).abs())
        assert torch.allclose(found[key], a[key] + (c[key] - a[key]) * mask, atol=1e-5)


@pytest.mark.parametrize(
    "merge",
    [
        "merge: weighted_sum(a, c, alpha=literal(0.25))\n",
        "steps: {number: {literal: 0.25}}\nmerge: {method: weighted_sum, inputs: [a, c], alpha: {model: number}}\n",
        "merge: {method: weighted_sum, inputs: [a, c], alpha: 0.25}\n",
    ],
)
def test_a_literal_is_a_tensor_of_one_number(folder: Path, merge: str) -> None:
    found = run(folder, merge)
    a, _, c = weights(folder)
    assert all(torch.allclose(found[k], 0.75 * a[k] + 0.25 * c[k], atol=1e-6) for k in a)


def test_a_file_of_params_is_a_mask(folder: Path) -> None:
    a, _, c = weights(folder)
    save_file({key: torch.full((6, 8), 0.5) for key in a}, folder / "mask.safetensors")
    text = f"  mask: {{checkpoint: {folder}/mask.safetensors, holds: param}}\nmerge: weighted_sum(a, c, alpha=mask)\n"
    assert all(torch.allclose(t, (a[k] + c[k]) / 2, atol=1e-6) for k, t in run(folder, text).items())


def test_a_fallback_takes_what_is_missing_from_the_second(folder: Path) -> None:
    found = run(folder, "merge: b | a\n", "a", "b")
    a, b, _ = weights(folder)
    assert torch.equal(found["extra"], a["extra"]) and torch.equal(found["w"], b["w"])


def test_components_of_a_model_of_one_component() -> None:
    """`transformer` is all of a FLUX checkpoint; without it nothing is left, and the fallback is taken."""
    path = "pocket/schnell"
    one, other = fs.model(path, name="one"), fs.model("pocket/base", name="other")
    for picked, wanted in ((fs.component(one, "transformer"), one), (fs.omit(one, "vae", "t5"), one)):
        found = fs.load_state_dict(fs.weighted_sum(picked, other, alpha=0.25))
        assert all(torch.equal(t, found[k]) for k, t in fs.load_state_dict(fs.weighted_sum(wanted, other, alpha=0.25)).items())
    rest = fs.load_state_dict(fs.linear(fs.omit(one, "transformer") | other, one))
    assert all(torch.equal(t, rest[k]) for k, t in fs.load_state_dict(fs.linear(other, one)).items())


@pytest.mark.parametrize("operator", ["sum", "call", "fallback"])
def test_two_thousand_levels_are_planned_saved_and_merged(operator: str) -> None:
    a, b = ({"x": torch.tensor([value])} for value in (1.0, 2.0))
    one, two = fs.state_dict(a, name="a"), fs.state_dict(b, name="b")
    node: Any = one
    for _ in range(2_000):
        if operator == "sum":
            node = fs.linear(node, two, weights=[1, 0]) if node is one else node + (two - one) * 0.001
        else:
            node = fs.weighted_sum(node, two, alpha=0.001) if operator == "call" else fs.weighted_sum(node, two, alpha=0.001) | one
    expected = {"sum": 1.0 + 1.999, "call": 2 - 0.999**2_000, "fallback": 2 - 0.999**2_000}[operator]
    assert float(fs.load_state_dict(node)["x"]) == pytest.approx(expected, rel=1e-3)
