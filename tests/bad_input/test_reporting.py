"""How a fault is told: to people, to programs, and when it is our own."""

import json
import signal
import tempfile
from pathlib import Path

import pytest

from bad_input.cases import Yard
from fluxsmith.engine import merging
from support.cli_runs import run_cli, start_cli

FAULTS = {"file": (3, "file.empty"), "recipe": (4, "recipe.bad-formula"), "usage": (2, "usage.arguments")}


@pytest.mark.parametrize("kind", FAULTS)
def test_json_has_the_same_facts(yard: Yard, kind: str) -> None:
    code, error = FAULTS[kind]
    yard.broken.touch()
    more = {"file": [], "recipe": [], "usage": ["--fast"]}[kind]
    formula = "0.5*a +" if kind == "recipe" else "0.5*a + 0.5*b"
    run = run_cli(*yard.merge(yard.broken, "--json", *more, formula=formula))
    assert run.code == code
    told = json.loads(run.out)["error"]
    assert (told["code"], told["exit_code"]) == (error, code)
    assert f"error[{error}]: {told['message']}" in run.err
    if kind == "file":
        assert told["file"] == str(yard.broken)
        assert told["fix"]


def test_a_bug_is_one_line_and_a_log(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("img_in")

    monkeypatch.setattr(merging, "make_plan", broken)
    monkeypatch.setattr(tempfile, "tempdir", str(yard.root))
    run = run_cli(*yard.merge(yard.tiny.a))
    assert run.code == 1
    assert "error[bug]: KeyError: 'img_in'" in run.err
    assert "Traceback" not in run.err
    log = next(Path(line.split()[-1]) for line in run.err.splitlines() if line.startswith("  log"))
    assert "Traceback" in log.read_text()
    monkeypatch.setenv("FLUXSMITH_DEBUG", "1")
    assert "Traceback" in run_cli(*yard.merge(yard.tiny.a)).err


def test_the_program_itself_ends_with_the_code(yard: Yard) -> None:
    """The one test of a fault in a process of its own: exit code and streams are those of the system."""
    process = start_cli(*yard.merge(yard.broken))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (3, "")
    assert err.startswith("error[file.not-found]: ")


def test_ctrl_c_before_the_run_is_quiet(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(merging, "make_plan", interrupted)
    run = run_cli(*yard.merge(yard.tiny.a))
    assert (run.code, run.out, run.err.strip()) == (130, "", "")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
