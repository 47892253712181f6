"""Which of its three forms a reference has."""

import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.utils import validate_repo_id

from fluxsmith import hub
from fluxsmith.errors import FileError
from fluxsmith.hub import HubReference, parse_reference


@pytest.mark.parametrize(
    ("reference", "repo", "revision", "path"),
    [
        ("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-dev", None, None),
        ("org/name@v1.0", "org/name", "v1.0", None),
        ("org/name@refs/pr/4", "org/name", "refs/pr/4", None),
        ("org/name:transformer", "org/name", None, "transformer"),
        ("org/name:transformer/", "org/name", None, "transformer"),
        ("org/name:/", "org/name", None, None),
        ("org/name:flux1-dev.safetensors", "org/name", None, "flux1-dev.safetensors"),
        ("org/name@main:a/b/c.safetensors", "org/name", "main", "a/b/c.safetensors"),
        ("org/name@refs/pr/4:a b/c@d:e", "org/name", "refs/pr/4", "a b/c@d:e"),
    ],
)
def test_hub_forms(reference: str, repo: str, revision: str | None, path: str | None) -> None:
    found = parse_reference(reference)
    assert found == HubReference(repo, revision, path)
    validate_repo_id(repo)
    assert parse_reference(str(found)) == found


@pytest.mark.parametrize(
    "reference",
    [
        "",
        " ",
        "flux1-dev",
        "./org/name",
        "../name",
        "/org/name",
        "~/models",
        "models/flux1-dev.safetensors",
        "models/flux1-dev.GGUF",
        "a/b/c",
        "models/flux/",
        "org/na me",
        "org/na--me",
        "org/na..me",
        "org/name.git",
        "-org/name",
        "org/name.",
        f"org/{'n' * 97}",
        "org/name@../../etc",
        "org/name@/etc",
        "org/name@",
        "org/näme",
        "https://huggingface.co/org/name",
        "org/name\0",
    ],
)
def test_other_words_are_paths_that_do_not_exist(reference: str) -> None:
    with pytest.raises(FileError) as caught:
        parse_reference(reference)
    assert caught.value.code == "file.not-found"
    assert "org/name[@revision][:path]" in (caught.value.fix or "")


def test_a_local_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "pocket" / "mine").mkdir(parents=True)
    (tmp_path / "org" / "gone").symlink_to(tmp_path / "nowhere")
    assert parse_reference("org/name") == Path("org/name")
    assert parse_reference("~/org/name") == tmp_path / "org" / "name"
    assert parse_reference("pocket/mine") == Path("pocket/mine")
    assert parse_reference("org/gone") == Path("org/gone")
    assert parse_reference("org/other") == HubReference("org/other")


def test_pocket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "pocket_folder", lambda: tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "strokes").mkdir()
    (tmp_path / "README.md").touch()
    assert parse_reference("pocket/digits") == tmp_path / "digits"
    with pytest.raises(FileError) as caught:
        parse_reference("pocket/digit")
    assert (caught.value.code, caught.value.facts) == ("pocket.unknown-name", {"known": "digits, strokes"})
    assert caught.value.fix == "did you mean `digits`?"


def test_pocket_lies_in_the_package() -> None:
    assert hub.pocket_folder() == Path(hub.__file__).parent / "pocket" / "weights"


def test_parsing_imports_neither_torch_nor_huggingface_hub() -> None:
    code = (
        "import sys, fluxsmith.hub as hub\n"
        "hub.parse_reference('org/name')\n"
        "try: hub.parse_reference('pocket/none-of-this-name')\n"
        "except hub.FileError: pass\n"
        "assert not {'torch', 'huggingface_hub', 'httpx2'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
