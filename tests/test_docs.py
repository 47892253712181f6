"""Every command and snippet of the tutorial runs, in its order, in a folder of its own; every command has examples."""

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxsmith.cli.main import COMMANDS
from fluxsmith.methods import METHODS
from support.cli_runs import run_cli

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```(bash|python|yaml)(?: exit=(\d+))?\n(.*?)```", re.DOTALL)
NAMED = re.compile(r"# ([\w.-]+\.yaml)\n")


@pytest.fixture
def registry() -> Iterator[None]:
    """Methods that a page declares are gone after it."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("page", ["tutorial.md", "adapters-tutorial.md", "recipes.md", "all-in-one.md"])
def test_every_snippet_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its order and in one folder: commands, Python (in one namespace), and YAML that begins with a file's name."""
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((ROOT / "docs" / page).read_text())
    assert len(blocks) > 8
    namespace: dict[str, object] = {}
    for language, code, text in blocks:
        if language == "python":
            exec(compile(text, page, "exec"), namespace)
        elif language == "yaml":
            (tmp_path / NAMED.match(text)[1]).write_text(text)  # pyright: ignore[reportOptionalSubscript]
        else:
            for line in text.strip().split("\n"):
                _run(line, int(code or 0))
    assert not (tmp_path / "wrong.safetensors").exists()
    _check_pictures(page, tmp_path)


def _check_pictures(page: str, made: Path) -> None:
    """Every picture that a page shows was made by its snippets; `make pictures` takes them over."""
    shown = re.findall(r"\]\((images/[\w-]+\.png)\)", (ROOT / "docs" / page).read_text())
    kind = page.partition("-")[0].removesuffix(".md")
    for path in shown:
        found = made / Path(path).name.removeprefix(f"{kind}-")
        assert found.exists(), path
        if os.environ.get("FLUXSMITH_PICTURES"):
            shutil.copy(found, ROOT / "docs" / path)
        assert (ROOT / "docs" / path).exists(), path


def _run(line: str, code: int) -> None:
    program, *arguments = shlex.split(line, comments=True)
    assert program == "fluxsmith"
    ended = run_cli(*arguments)
    assert ended.code == code, f"{line}\n{ended.err}"
    if "comfy.safetensors" in line and "diff" in line:
        assert "identical" in ended.out


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
