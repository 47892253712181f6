"""`.mecha` text: what is accepted, what is written, and that sd-mecha reads it back to the same tensors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import fluxsmith as fs
from fluxsmith.errors import RecipeError, UsageError
from fluxsmith.recipes.expressions import Expression
from fluxsmith.recipes.formula import show
from fluxsmith.recipes.recipe import Recipe
from fluxsmith.recipes.schedules import Ramp
from support.tiny_flux import tensors_of

sd_mecha: Any = pytest.importorskip("sd_mecha", reason="sd-mecha is an oracle and is not installed (pip install sd-mecha)")

Models = tuple[Expression, Expression, Expression]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("plain")
    generator = torch.Generator().manual_seed(6)
    for name in "abc":
        tensors = {key: torch.randn(24, 16, generator=generator) for key in ("first.weight", "second.weight")}
        save_file(tensors, folder / f"{name}.safetensors")
    return [folder / f"{name}.safetensors" for name in "abc"]


@pytest.fixture
def models(paths: list[Path]) -> Models:
    a, b, c = (fs.model(str(path), name=path.stem) for path in paths)
    return a, b, c


def read(text: str, folder: Path) -> Recipe:
    (folder / "x.mecha").write_text(text)
    return fs.recipes.load(folder / "x.mecha")


HEAD = 'version 0.1.0\nmodel "one.safetensors"\nmodel "two.safetensors" model_config="flux-flux" merge_space="weight"\n'


@pytest.mark.parametrize(
    ("lines", "formula"),
    [
        ('merge "weighted_sum" &0 &1', "weighted_sum(one, two, alpha=0.5)"),
        ('merge "weighted_sum" &0 &1\n', "weighted_sum(one, two, alpha=0.5)"),
        ('# said\n\n  # more\nmerge "weighted_sum" &0 b=&1 alpha=2.5e-1\n\n', "weighted_sum(one, two, alpha=0.25)"),
        ('dict key=0.3\nliteral &2 "singleton-mecha" "param"\nmerge "convert_singleton" &3\nmerge "slerp" &0 &1 &4',
         "slerp(one, two, alpha=0.3)"),
        ('merge "subtract" &1 &0\nmerge "ties_sum" &2 k=0.5\nmerge "add_difference" &0 &3',
         "ties(one, two, density=0.5, sign='count', undecided='none')"),
        ('merge "subtract" &1 &0\nmerge "scale" &2 0.5\nmerge "add_difference" &0 &3 1.0', "0.5*one + 0.5*two"),
        ('merge "subtract" &1 &0\nmerge "truncate_rank" &2 rank=4\nmerge "add_difference" &0 &3',
         "one + truncate_rank(two - one, rank=4, algorithm='sketch', passes=2)"),
        ('merge "pick_component" &0 "clip_l"\nmerge "fallback" &2 &1', 'component(one, "clip_l") | two'),
        ('merge "fallback" &0 &1', "one | two"),
        ('merge "convert_\'sdxl-kohya\'_to_\'sdxl-sgm\'" &0\nmerge "n_average" &2 &1', "linear(one, two)"),
        ('model "one.safetensors"\nmerge "n_average" &0 &1 &2', "linear(one, two, one)"),
    ],
)  # fmt: skip
def test_lines_mean_expressions(lines: str, formula: str, tmp_path: Path) -> None:
    assert show(read(HEAD + lines, tmp_path).root) == formula


def test_the_first_line_tells_what_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "recipe.txt").write_text(HEAD + 'merge "n_average" &0 &1\n')
    assert show(fs.recipes.load(tmp_path / "recipe.txt").root) == "linear(one, two)"


def test_models_are_replaced_by_name_and_have_names_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "x.mecha").write_text('version 0.1.0\nmodel "x/m.safetensors"\nmodel "y/m.safetensors"\nmerge "n_average" &0 &1')
    named = {m.name: m.reference for m in fs.recipes.load(tmp_path / "x.mecha", m_2="other.safetensors").models()}
    assert named == {"m": "x/m.safetensors", "m_2": "other.safetensors"}


def test_a_cast_result_is_the_type_of_the_output(tmp_path: Path) -> None:
    recipe = read(HEAD + 'merge "n_average" &0 &1\nmerge "cast" &2 dtype="bfloat16"', tmp_path)
    assert (show(recipe.root), recipe.output.dtype) == ("linear(one, two)", "BF16")


def test_block_weights_of_supermerger_are_blocks(tmp_path: Path) -> None:
    lines = 'dict BASE=0.5 IN03=0.25 M00=0.75 OUT11=1.0 VAE=0\nliteral &2 model_config="sdxl-supermerger_blocks" merge_space="param"\n'
    recipe = read(HEAD + lines + 'merge "convert_sdxl_blocks_to_sgm" &3\nmerge "weighted_sum" &0 &1 &4', tmp_path)
    alpha = recipe.root.options["alpha"]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]
    assert alpha.default == 0.5  # pyright: ignore[reportUnknownMemberType]
    assert {selector.text: number for selector, number in alpha.entries} == {"in.3": 0.25, "mid.0": 0.75, "out.11": 1.0, "vae": 0.0}  # pyright: ignore


WRITTEN: list[tuple[str, Callable[[Models], Expression]]] = [
    ("weighted_sum", lambda m: fs.weighted_sum(m[0], m[1], alpha=0.3)),
    ("a sum", lambda m: m[0] * 0.5 + m[1] * 0.3 + m[2] * 0.2),
    ("a sum with deltas", lambda m: m[0] + (m[1] - m[2]) * 0.5 + (m[2] - m[0]) * 0.25),
    ("linear", lambda m: fs.linear(*m, weights=[1, 2, 3])),
    ("average", lambda m: fs.linear(*m)),
    ("add_difference", lambda m: fs.add_difference(*m, alpha=0.5)),
    ("slerp", lambda m: fs.slerp(m[0], m[1], alpha=0.2)),
    ("perpendicular", lambda m: fs.perpendicular(*m, alpha=0.5)),
    ("a mask as alpha", lambda m: fs.weighted_sum(m[0], m[1], alpha=fs.train_difference_mask(*m))),
    ("ties", lambda m: fs.ties(*m, density=1.0, scale=0.5, undecided="none")),
    ("ties by count", lambda m: fs.ties(*m, density=1.0, sign="count", undecided="none")),
    ("model_stock", lambda m: fs.model_stock(*m, over="rows", pairs="consecutive")),
    ("clamp", lambda m: fs.clamp(*m)),
    ("nested", lambda m: fs.weighted_sum(fs.linear(m[0], m[1]), fs.add_difference(*m), alpha=0.25) | m[2]),
]


@pytest.mark.parametrize("wish", [case[1] for case in WRITTEN], ids=[case[0] for case in WRITTEN])
def test_what_is_written_sd_mecha_reads(models: Models, tmp_path: Path, wish: Callable[[Models], Expression]) -> None:
    file = fs.recipes.save(Recipe(wish(models), title="two\nlines"), tmp_path / "saved.mecha")
    ours = fs.load_state_dict(wish(models))
    again = fs.load_state_dict(fs.recipes.load(file))
    recipe = sd_mecha.deserialize(file.read_text())
    sd_mecha.merge(recipe, output=tmp_path / "theirs.safetensors", merge_dtype=torch.float32, output_dtype=torch.float32, threads=1)
    theirs: dict[str, Tensor] = tensors_of(tmp_path / "theirs.safetensors")
    assert ours.keys() == again.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert torch.allclose(again[key], tensor, rtol=1e-5, atol=1e-6), key
        assert torch.allclose(theirs[key], tensor, rtol=1e-4, atol=1e-5), key


@pytest.mark.parametrize(
    ("wish", "word"),
    [
        (lambda m: fs.weighted_sum(m[0], m[1], alpha=Ramp((0.0, 1.0))), "block to block"),
        (lambda m: fs.magmax(*m), "magmax"),
        (lambda m: fs.ties(*m, density=0.5), "undecided"),
        (lambda m: fs.ties(*m, weights=[1, 2], undecided="none"), "weights"),
        (lambda m: fs.ties(*m, density=[0.1, 0.2], undecided="none"), "density"),
        (lambda m: fs.linear(m[0], fs.model("org/name", name="hub")), "org/name"),
        (lambda m: fs.linear(m[0], fs.state_dict({}, name="mine")), "in memory"),
        (lambda m: fs.linear(m[0], fs.model("a=b.safetensors")), "cuts text"),
        (lambda m: fs.component(m[0], "clip_l", "vae") | m[1], "several components"),
    ],
)  # fmt: skip
def test_what_mecha_cannot_say_is_refused_by_name(models: Models, tmp_path: Path, wish: Callable[[Models], Any], word: str) -> None:
    with pytest.raises(RecipeError, match="mecha") as caught:
        fs.recipes.save(wish(models), tmp_path / "saved.mecha")
    assert word in str(caught.value)
    assert caught.value.fix
    assert not (tmp_path / "saved.mecha").exists()


def test_policies_are_refused(models: Models, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="missing tensors"):
        fs.recipes.save(Recipe(models[0], missing="base"), tmp_path / "saved.mecha")


def test_a_suffix_that_is_no_recipe(models: Models, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no recipe file"):
        fs.recipes.save(models[0], tmp_path / "saved.txt")
