"""`fluxsmith bench methods`: every method is called rightly, searched within bounds, scored once, and shown as it is."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fluxsmith.engine.in_memory import load_state_dict
from fluxsmith.errors import IncompatibleError, RecipeError
from fluxsmith.methods import METHODS
from fluxsmith.pocket.checkpoints import LEARNED
from fluxsmith.recipes.expressions import Call
from fluxsmith.recipes.recipe import Recipe
from fluxsmith.reports.methods_bench import bench as running
from fluxsmith.reports.methods_bench import statistics_inputs
from fluxsmith.reports.methods_bench.bench import Bench, Row, run_bench
from fluxsmith.reports.methods_bench.calls import express, why_not
from fluxsmith.reports.methods_bench.family import pocket_family
from fluxsmith.reports.methods_bench.records import Record, Records
from fluxsmith.reports.methods_bench.scoring import FINAL, SEARCH, merged_recipe, standard_error
from fluxsmith.reports.methods_bench.settings import MOST_TRIALS, axes, search, setting_text
from fluxsmith.reports.methods_bench.table import methods_page
from fluxsmith.reports.methods_bench.verdicts import best_rows, conflicts, verdicts, worst_skill
from support.cli_runs import run_cli

TUNED = ("schnell", "dev", "framed")
APPLY = [name for name, method in METHODS.items() if why_not(method) is None]


def tensors(expression: Any) -> dict[str, torch.Tensor]:
    return load_state_dict(merged_recipe(expression).with_output(dtype="F32"))[0]


@pytest.fixture(autouse=True, scope="module")
def few_examples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics_inputs, "EXAMPLES", 2)
        yield
        statistics_inputs._file.cache_clear()  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("name", APPLY)
def test_every_method_that_applies_gives_a_weight_at_its_default_and_at_every_value_searched(name: str) -> None:
    family, method = pocket_family("base", TUNED), METHODS[name]
    searched = [{option: value} for option, values in axes(method) for value in values]
    for options in [{}, *searched]:
        node = express(method, family, options)
        assert node.space == "weight"
        used = {model.name for model in Recipe(node).models()}
        assert used >= set(TUNED)
        assert {model for model in used if " of " not in model} <= {"base", *TUNED}  # the others are statistics


def test_methods_that_do_not_apply_are_told_with_a_reason() -> None:
    assert {"linear", "ties", "task_arithmetic", "dare_ties", "slerp", "model_stock", "regmean"} <= set(APPLY)
    assert why_not(METHODS["add_difference"]) == "takes three models, not any number of models"
    with pytest.raises(RecipeError, match="guidance layers"):
        express(METHODS["bake_guidance"], pocket_family("base", TUNED), {})


def test_task_arithmetic_is_called_with_base_and_models() -> None:
    base, a, b = (tensors(node) for node in (pocket_family("base", ()).base, *pocket_family("base", ("framed", "faint")).tuned))
    child = tensors(express(METHODS["task_arithmetic"], pocket_family("base", ("framed", "faint")), {"scale": 0.5}))
    key = "single_transformer_blocks.0.proj_mlp.weight"
    assert torch.allclose(child[key], base[key] + 0.5 * (a[key] - base[key] + b[key] - base[key]), atol=1e-6)


def test_slerp_gives_all_models_the_same_share() -> None:
    family = pocket_family("base", TUNED)
    node = express(METHODS["slerp"], family, {})
    assert dict(node.options) == {"alpha": 1 / 3}  # type: ignore[attr-defined]
    assert dict(node.inputs[0].options) == {"alpha": 1 / 2}  # type: ignore[attr-defined]


def test_one_number_is_given_to_all_inputs() -> None:
    node = express(METHODS["delta_merge"], pocket_family("base", TUNED), {"weights": 0.3, "combine": "mean"})
    assert tuple(node.options["weights"]) == (0.3, 0.3, 0.3)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", APPLY)
def test_no_method_is_searched_longer_than_said_or_at_its_default(name: str) -> None:
    found = axes(METHODS[name])
    assert sum(len(values) for _, values in found) <= MOST_TRIALS
    for option, values in found:
        default = METHODS[name].options[option].default if option in METHODS[name].options else None
        assert default not in values


def test_search_takes_one_option_after_another_and_keeps_the_best() -> None:
    asked: list[dict[str, Any]] = []

    def mean(options: Mapping[str, Any]) -> float | None:
        asked.append(dict(options))
        if options.get("scale") == 2.5:
            return None  # does not run
        return 0.5 - abs(options.get("scale", 1.0) - 1.6) + (0.1 if options.get("density") == 0.2 else 0.0)

    assert search(METHODS["ties"], mean) == {"scale": 1.5, "density": 0.2}
    assert asked[0] == {}
    assert {"scale": 1.5, "density": 0.8} in asked  # after the best scale, not after the last
    assert len(asked) <= MOST_TRIALS + 1
    assert search(METHODS["ties"], lambda options: 0.5 if not options else 0.4) == {}


def test_settings_are_searched_on_other_images_than_those_of_the_table() -> None:
    assert not set(range(SEARCH.first_seed, SEARCH.first_seed + SEARCH.images)) & set(
        range(FINAL.first_seed, FINAL.first_seed + FINAL.images)
    )


def test_setting_text() -> None:
    assert setting_text({"scale": 0.50, "normalize": False, "sign": "count"}) == "scale 0.5, normalize false, sign count"


def test_a_line_that_a_crash_cut_off_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    Records(path).add(Record("k1", "ties", {"scale": 1.0}, {"plain": 0.9}, 20, 1.0))
    with path.open("a") as file:
        file.write('{"key": "k2", "name": "ti')
    again = Records(path)
    assert again.find("k1") == Record("k1", "ties", {"scale": 1.0}, {"plain": 0.9}, 20, 1.0)
    assert again.find("k2") is None
    again.add(Record("k3", "ties", {}, {"plain": 0.8}, 20, 1.0))
    assert Records(path).find("k3") is not None


def row(name: str, kind: Any, *accuracy: float) -> Row:
    skills = ("plain", "inverted", "slanted-left", "slanted-right")
    return Row(name, kind, Record(name, name, {}, dict(zip(skills, accuracy, strict=True)), 200, 1.0))


def small_bench() -> Bench:
    bench = Bench(("schnell", "slanted-left", "slanted-right"), ("plain", "inverted", "slanted-left", "slanted-right"), FINAL)
    bench.references = [
        row("base", "reference", 0.9, 0.1, 0.0, 0.0), row("schnell", "reference", 0.9, 1.0, 0.0, 0.0),
        row("slanted-left", "reference", 0.9, 0.1, 1.0, 0.0), row("average of all", "reference", 0.9, 0.3, 0.0, 0.0),
    ]  # fmt: skip
    bench.rows = [
        row("linear", "default and best", 0.9, 0.3, 0.0, 0.0), row("ties", "default", 0.9, 0.3, 0.01, 0.0),
        row("ties", "best", 0.95, 0.85, 0.3, 0.2), row("task_arithmetic", "default", 0.1, 0.1, 0.1, 0.1),
        row("task_arithmetic", "best", 0.9, 0.6, 0.0, 0.0), row("useless", "default and best", 0.9, 0.32, 0.0, 0.0),
    ]  # fmt: skip
    return bench


def test_verdicts_say_where_a_method_does_not_help() -> None:
    bench = small_bench()
    assert [r.name for r in best_rows(bench)] == ["ties", "task_arithmetic", "useless", "linear"]
    text = "\n".join(verdicts(bench))
    assert "No better than that at their best setting** (within two standard errors): `useless`." in text
    assert "Better by more than two standard errors: `ties`. Neither better nor worse: none. Worse: `useless`, `linear`." in text
    assert "The most even child is that of `ties` (slanted-left 30%, slanted-right 20%)" in text
    assert "more than 10 points for 2 of 2 methods" in text


def test_the_worst_skill_is_not_one_that_no_model_could_have() -> None:
    bench = small_bench()
    assert conflicts(bench.skills) == ["slanted-left", "slanted-right"]
    assert worst_skill(bench, bench.rows[2]) == "inverted"


def test_the_page_sorts_children_and_names_what_is_missing() -> None:
    bench = small_bench()
    bench.skipped["slerp"], bench.failed["wudi"] = "takes two models", "no such layer"
    page = methods_page(bench, "images/methods.png", "fluxsmith bench methods")
    children = page.split("## Children")[1].split("## How")[0].strip().split("\n")[2:]
    assert [line.split(" | ")[0].strip("| ") for line in children] == [
        "ties", "task_arithmetic", "useless", "ties", "linear", "task_arithmetic",
    ]  # fmt: skip
    assert "`slerp`: takes two models" in page
    assert "`wudi`: no such layer" in page


def test_standard_error_of_a_mean() -> None:
    assert standard_error({"a": 0.5, "b": 1.0}, 100) == pytest.approx(0.025)


def test_quick_bench_through_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("bench", "methods", "--quick", "--methods", "task_arithmetic,ties", "--parents", "framed,faint", "-o", tmp_path)
    done = run_cli(*command, "--json")
    assert done.code == 0, done.err
    rows = {(r["name"], r["kind"]): r["accuracy"] for r in json.loads(done.out)["rows"]}
    assert {name for name, _ in rows} == {"base", "framed", "faint", "average of all", "task_arithmetic", "ties"}
    for parent in ("framed", "faint"):
        assert rows[parent, "reference"][LEARNED[parent]] >= 0.85
        assert rows["base", "reference"][LEARNED[parent]] <= 0.1
    page = (tmp_path / "methods-table.md").read_text()
    assert "| task_arithmetic | " in page
    assert (tmp_path / "images" / "methods.png").read_bytes().startswith(b"\x89PNG")

    assert run_cli(*command).code == 2  # the table exists
    lines = (tmp_path / "methods-scores.jsonl").read_text()
    monkeypatch.setattr(running, "score", lambda *_: pytest.fail("a score that is known was measured again"))
    assert run_cli(*command, "--force").code == 0
    assert (tmp_path / "methods-scores.jsonl").read_text() == lines
    assert (tmp_path / "methods-table.md").read_text() == page


def test_a_method_that_does_not_run_is_named_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_for_ties(wish: Any, skills: Any, scoring: Any) -> tuple[dict[str, float], float]:
        if isinstance(wish, Recipe) and isinstance(wish.root, Call) and wish.root.method.name == "ties":
            raise IncompatibleError("values.not-finite", "the result has NaN")
        return dict.fromkeys(skills, 0.5), 0.0

    monkeypatch.setattr(running, "score", fail_for_ties)
    bench = run_bench(tmp_path / "scores.jsonl", lambda _: None, methods=("ties", "linear"), tuned=("framed",), quick=True)
    assert bench.failed == {"ties": "the result has NaN"}
    assert [r.name for r in bench.rows] == ["linear"]


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--methods", "tis"), 2, "did you mean `ties`"),
        (("--methods", "bake_guidance"), 4, "guidance layers"),
        (("--parents", "frame"), 2, "did you mean `framed`"),
    ],
)
def test_wrong_names_are_refused_before_anything_runs(flags: tuple[str, ...], code: int, said: str, tmp_path: Path) -> None:
    ended = run_cli("bench", "methods", *flags, "-o", tmp_path)
    assert ended.code == code
    assert said in ended.err
    assert not list(tmp_path.rglob("*.*"))
