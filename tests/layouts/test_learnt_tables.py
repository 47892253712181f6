"""`fluxsmith layout learn` and users' tables: what is learnt from one file fits another, and refuses what is no such file."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fluxsmith as fs
from fluxsmith.engine.plan import Apply
from fluxsmith.errors import IncompatibleError
from fluxsmith.io.opening import open_checkpoint
from fluxsmith.layouts import FLUX1, families, known_tables, table_of
from fluxsmith.layouts.learning import learn
from fluxsmith.layouts.table_file import read_table, table_of_file, to_yaml
from fluxsmith.recipes.loading import load_recipe
from support.cli_runs import run_cli
from support.tiny_pipelines import PIPELINES, save_pipeline


def encoder(seed: int, *, width: int = 12, depth: int = 3) -> dict[str, Tensor]:
    """A small encoder that no family knows; its first layer has a tensor that the others lack."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    layers = {
        f"stack.layers.{i}.{name}.weight": draw(*shape)
        for i in range(depth)
        for name, shape in (("mix", (width, width)), ("up", (3 * width, width)), ("down", (width, 3 * width)), ("norm", (width,)))
    }
    ends = {
        "embed.weight": draw(20, width),
        "stack.layers.0.bias_table.weight": draw(9, 2),
        "head.weight": draw(20, width),
        "scale": draw(),
    }
    return {**layers, **ends, "positions": torch.arange(5)}


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's tables, with one learnt from a file of width 12 by the command."""
    save_file(encoder(1), tmp_path / "a.safetensors")
    folder = tmp_path / "tables"
    monkeypatch.setenv("FLUXSMITH_TABLES", str(folder))
    run = run_cli("layout", "learn", tmp_path / "a.safetensors", "-o", folder / "stacker.yaml")
    assert run.code == 0, run.err
    return folder


def test_a_learnt_table_binds_other_sizes_of_its_kind(tables: Path, tmp_path: Path) -> None:
    """Wider and deeper: the same family with its own dims; numbers are kept apart from weights."""
    save_file(encoder(2, width=16, depth=5), tmp_path / "b.safetensors")
    plan = fs.plan(str(tmp_path / "b.safetensors"))
    assert (plan.family, plan.layout) == ("stacker", "original")
    assert {job.block for job in plan.jobs} == {None, *(f"layers.{i}" for i in range(5))}
    assert next(job for job in plan.jobs if job.tensor == "positions").action == "copied"


def test_blocks_of_a_learnt_family_are_selected(tables: Path, tmp_path: Path) -> None:
    one, two = encoder(1), encoder(2)
    save_file(two, tmp_path / "b.safetensors")
    (tmp_path / "r.yaml").write_text(
        f"fluxsmith: 1\nmodels: {{a: {tmp_path}/a.safetensors, b: {tmp_path}/b.safetensors}}\nmerge:\n"
        "  method: weighted_sum\n  inputs: [a, b]\n  alpha: {default: {ramp: [0, 1]}, layers.1.up: 0}\n"
    )
    fs.merge(load_recipe(tmp_path / "r.yaml"), tmp_path / "o.safetensors")
    found = load_file(tmp_path / "o.safetensors")
    assert found.keys() == one.keys()
    for key in ("embed.weight", "stack.layers.0.mix.weight", "stack.layers.0.bias_table.weight", "stack.layers.1.up.weight"):
        assert torch.equal(found[key], one[key]), key
    for key in ("head.weight", "stack.layers.2.up.weight"):
        assert torch.equal(found[key], two[key]), key
    key = "stack.layers.1.mix.weight"
    assert torch.allclose(found[key], (one[key] + two[key]) / 2, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "stack.layers.1.norm.weight"}, "model.missing-keys"),
        (lambda t: t | {"stack.layers.2.mix.weight": torch.zeros(12, 13)}, "model.wrong-shape"),
        (lambda t: t | {"stack.layers.2.extra.weight": torch.zeros(12)}, "model.unknown-keys"),
        (lambda t: {k: v for k, v in t.items() if ".layers.1." not in k}, "model.missing-blocks"),
    ],
)
def test_files_that_are_not_quite_of_its_kind_are_refused(
    tables: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], code: str
) -> None:
    save_file(change(encoder(3)), tmp_path / "b.safetensors")
    with pytest.raises(IncompatibleError) as caught:
        fs.plan(str(tmp_path / "b.safetensors"))
    assert caught.value.code == code


def test_an_unlike_file_is_none_of_it(tables: Path, tmp_path: Path) -> None:
    save_file({"other.0.w": torch.zeros(3), "other.1.w": torch.zeros(3)}, tmp_path / "b.safetensors")
    assert fs.plan(str(tmp_path / "b.safetensors")).family == "structural"


@pytest.mark.parametrize(
    ("line", "word", "code"),
    [
        ("familly: x", "familly", "table.unknown-key"),
        ("family: [x", "", "table.bad-yaml"),
        ("family: y", "family", "table.duplicate-key"),
        ("marks: 3", "marks", "table.bad-value"),
        ("  - {name: more, shape: [d13]}", "shape", "table.unknown-size"),
        ("  - {name: more, shape: [12], part: x}", "part", "table.unknown-key"),
        ("  - {name: more, shape: [12], component: x}", "component", "table.unknown-component"),
    ],
)
def test_a_table_with_a_mistake_is_refused_with_its_place(tmp_path: Path, line: str, word: str, code: str) -> None:
    text = "fluxsmith-table: 1\nfamily: x\ncomponents: {model: ''}\nblocks: {}\ndims: {d12: 12}\n# one\n"
    text += "tensors:\n  - {name: w, shape: [d12]}\n"
    (tmp_path / "t.yaml").write_text(f"{text}{line}\n")
    with pytest.raises(IncompatibleError) as caught:
        read_table(tmp_path / "t.yaml")
    assert caught.value.code == code
    assert f"t.yaml:9:{line.index(word) + 1}" in caught.value.render() if word else "t.yaml:" in caught.value.render()


def test_one_bad_table_in_the_folder_is_named_by_every_command(tables: Path, tmp_path: Path) -> None:
    (tables / "bad.yaml").write_text("fluxsmith-table: 1\nfamly: x\n")
    run = run_cli("plan", "a", "-m", f"a={tmp_path}/a.safetensors")
    assert run.code == 4
    assert "bad.yaml:2:1" in run.err
    assert "did you mean `family`?" in run.err


def test_two_tables_of_one_name_are_refused(tables: Path) -> None:
    (tables / "again.yaml").write_text((tables / "stacker.yaml").read_text())
    with pytest.raises(IncompatibleError) as caught:
        known_tables()
    assert caught.value.code == "table.duplicate-family"


def test_a_kind_of_file_that_two_tables_fit_is_refused(tables: Path, tmp_path: Path) -> None:
    (tables / "again.yaml").write_text((tables / "stacker.yaml").read_text().replace("family: stacker", "family: other"))
    with pytest.raises(IncompatibleError) as caught:
        fs.plan(str(tmp_path / "a.safetensors"))
    assert caught.value.code == "model.ambiguous-family"


def test_tables_of_other_packages_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point of the group `fluxsmith.tables`; one that is no table is refused by its name."""
    save_file(encoder(1), tmp_path / "a.safetensors")
    (tmp_path / "their_tables.py").write_text(
        "from fluxsmith.io.opening import open_checkpoint\nfrom fluxsmith.layouts.learning import learn\n"
        "from fluxsmith.layouts.table_file import table_of_file\nfrom pathlib import Path\n"
        f"THEIRS = table_of_file(learn(open_checkpoint(Path({str(tmp_path / 'a.safetensors')!r})), 'theirs'))\nWRONG = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FLUXSMITH_TABLES", str(tmp_path / "none"))

    def installed(value: str) -> None:
        families._with_users.cache_clear()  # pyright: ignore[reportPrivateUsage]
        monkeypatch.setattr("fluxsmith.entry_points.entry_points", lambda group: [EntryPoint("theirs", value, group)])

    installed("their_tables:THEIRS")
    found = table_of("theirs")
    installed("their_tables:WRONG")
    with pytest.raises(IncompatibleError) as caught:
        known_tables()
    monkeypatch.undo()
    families._with_users.cache_clear()  # pyright: ignore[reportPrivateUsage]
    assert found is not None
    assert (caught.value.code, "their_tables:WRONG" in caught.value.render()) == ("table.not-loaded", True)


def test_learning_a_known_family_gives_its_keys_and_components(tmp_path: Path) -> None:
    """From an all-in-one SDXL file: as many tensors as the built-in table, components told apart, all shapes right."""
    save_pipeline(PIPELINES["sdxl"], tmp_path / "a", 1)
    fs.merge(str(tmp_path / "a"), tmp_path / "a.safetensors", layout="sgm")
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    file = learn(checkpoint, "mine")
    assert list(file.components) == ["denoiser", "vae", "text_encoder", "text_encoder_2"]
    (tmp_path / "t.yaml").write_text(to_yaml(file, "a test"))
    table = read_table(tmp_path / "t.yaml")
    assert table.rows == table_of_file(file).rows, "what is written reads back the same"
    dims = dict(file.dims) | {"layers": 2, "resblocks": 3}
    pieces = {piece.name: tensor.shape for tensor in table.expand(dims) for piece in tensor.pieces["original"]}
    assert pieces == {key: view.shape for key, view in checkpoint.tensors.items()}


def test_list_layouts_and_families_come_from_the_tables(tables: Path) -> None:
    listed = run_cli("list", "layouts").out
    for table in known_tables():
        assert table.family in listed
    assert "stacker" in listed
    assert "double.N" in run_cli("list", "layouts", FLUX1.family).out
    assert "in.0-8" in run_cli("layout", "families").out


def test_the_page_of_families_is_current() -> None:
    """docs/families.md has what the command writes; its recipe is one that a U-Net takes."""
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    table = page.split("<!-- families -->\n")[1].split("<!-- end -->")[0]
    assert table == run_cli("layout", "families", "--markdown").out


def test_the_recipe_of_the_page_is_planned(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    merge = page.split("```yaml\n")[1].split("```")[0]
    for seed, name in enumerate("ab"):
        save_pipeline(PIPELINES["sd15"], tmp_path / name, seed)
    (tmp_path / "r.yaml").write_text(f"fluxsmith: 1\nmodels: {{a: {tmp_path}/a, b: {tmp_path}/b}}\n{merge}")
    plan = fs.plan(load_recipe(tmp_path / "r.yaml"))
    alphas = {job.block: step.options["alpha"] for job in plan.jobs for step in job.program if isinstance(step, Apply)}
    assert (alphas["in.0"], alphas["in.11"], alphas["mid.0"], alphas["out.0"], alphas["out.11"]) == (0.0, 0.5, 0.5, 0.5, 0.0)
