"""Every case of the table: the exit code, an error that says what, where and what to do, and nothing changed."""

import pytest

from bad_input.adapter_commands import ADAPTER_COMMANDS
from bad_input.adapter_recipes import ADAPTER_RECIPES
from bad_input.adapters import ADAPTERS
from bad_input.cases import Case, Yard
from bad_input.files import FILES
from bad_input.folders import FOLDERS
from bad_input.foreign_recipes import FOREIGN_RECIPES
from bad_input.models import MODELS
from bad_input.outputs import OUTPUTS
from bad_input.quantised import QUANTISED
from bad_input.recipes import RECIPES
from bad_input.usage import USAGE
from bad_input.values import VALUES
from support.cli_runs import CliRun, run_cli
from support.folder_pictures import picture

TABLE = {
    "file": FILES, "folder": FOLDERS, "model": MODELS, "value": VALUES, "output": OUTPUTS, "recipe": RECIPES,
    "foreign recipe": FOREIGN_RECIPES, "usage": USAGE, "adapter": ADAPTERS, "adapter in a recipe": ADAPTER_RECIPES,
    "adapter command": ADAPTER_COMMANDS, "quantised": QUANTISED,
}  # fmt: skip
CASES = [pytest.param(case, id=f"{kind}: {case.name}") for kind, cases in TABLE.items() for case in cases]


def has_remedy(text: str) -> bool:
    """A fix, a proposal, or a mark below the very word."""
    return any(sign in text for sign in ("\n  fix ", "did you mean", "^"))


@pytest.mark.parametrize("case", CASES)
def test_a_fault_is_named_and_changes_nothing(case: Case, yard: Yard) -> None:
    arguments = case.arrange(yard)
    before = picture(yard.root)

    run: CliRun = run_cli(*arguments)

    assert f"error[{case.error}]: " in run.err
    assert run.code == case.code
    assert run.out == ""
    assert "Traceback" not in run.err
    words = [word.replace("{broken}", str(yard.broken)).replace("{inputs}", str(yard.inputs)) for word in case.words]
    assert [word for word in words if word not in run.err] == []
    assert has_remedy(run.err) or not case.fix
    assert picture(yard.root) == before


def test_the_yard_itself_is_sound(yard: Yard) -> None:
    """Without a fault the same commands work, so that no case fails for another reason than its own."""
    for first in (yard.copy(yard.tiny.a), yard.copy(yard.tiny.sharded, "broken"), yard.tiny.comfy):
        run = run_cli(*yard.merge(first))
        assert run.code == 0, run.err
    run = run_cli(*yard.recipe("fluxsmith: 1\nmodels: {a: {a}, b: {b}}\nmerge: {method: linear, inputs: [a, b]}\n"))
    assert run.code == 0, run.err


def test_case_names_are_distinct() -> None:
    for kind, cases in TABLE.items():
        names = [case.name for case in cases]
        assert len(names) == len(set(names)), kind
