"""Every command and snippet of the tutorial runs, in its order, in a folder of its own; every command has examples."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fluxsmith.cli.main import COMMANDS
from support.cli_runs import run_cli

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```(bash|python)(?: exit=(\d+))?\n(.*?)```", re.DOTALL)


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((ROOT / "docs" / "tutorial.md").read_text())
    assert len(blocks) > 8
    for language, code, text in blocks:
        if language == "python":
            run = subprocess.run([sys.executable, "-c", text], check=False, capture_output=True, text=True)
            assert run.returncode == 0, run.stderr
            continue
        for line in text.strip().split("\n"):
            program, *arguments = shlex.split(line, comments=True)
            assert program == "fluxsmith"
            ended = run_cli(*arguments)
            assert ended.code == int(code or 0), f"{line}\n{ended.err}"
            if "comfy.safetensors" in line and "diff" in line:
                assert "identical" in ended.out
    assert not (tmp_path / "wrong.safetensors").exists()


def test_the_readme_names_what_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"`(src/fluxsmith/[\w/]+\.py)`", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([\w./]+)\)", text):
        assert (ROOT / path).exists(), path
    for command in re.findall(r"^fluxsmith ([\w-]+)", text, re.MULTILINE):
        assert command in COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_in_its_help(name: str) -> None:
    shown = run_cli(name, "--help")
    assert shown.code == 0
    examples = [line for line in shown.out.split("\n") if line.strip().startswith(f"fluxsmith {name}")]
    assert examples, shown.out
