"""`apply` and `extract` that are interrupted by Ctrl-C: nothing at the target, and `--resume` ends with the same bytes."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from bad_input.adapters import good
from bad_input.cases import Yard
from fluxsmith.cli.progress import RunDisplay
from support.broken_files import raw_file
from support.cli_runs import run_cli
from support.folder_pictures import picture

KEPT = ".merged.safetensors.fluxsmith-"  # what is done lies beside the target under such names


def commands(yard: Yard) -> dict[str, list[object]]:
    return {
        "apply": ["apply", good(yard), "-b", yard.tiny.a, "--no-report"],
        "extract": ["extract", yard.tiny.b, yard.tiny.a, "--rank", 2],
    }


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A place to count the tiles of runs; the run that counts to 10 first is interrupted then, as by Ctrl-C."""
    real, counts = RunDisplay.advanced, [0]

    def advanced(self: RunDisplay, *arguments: Any) -> None:
        real(self, *arguments)
        counts[-1] += 1
        if counts == [10]:
            self._interrupt(signal.SIGINT, None)  # pyright: ignore[reportPrivateUsage]

    monkeypatch.setattr(RunDisplay, "advanced", advanced)
    yield counts


@pytest.mark.parametrize("name", ["apply", "extract"])
def test_ctrl_c_keeps_what_is_done(name: str, yard: Yard, tiles: list[int]) -> None:
    words = [*commands(yard)[name], "--force", "--threads", 1]
    before = picture(yard.target.parent)
    first = run_cli(*words, "-o", yard.target)
    assert first.code == 130, first.err
    assert "error[run.stopped]" in first.err and "--resume" in first.err
    after = picture(yard.target.parent)
    assert {path: what for path, what in after.items() if not path.startswith(KEPT)} == before
    assert any(path.startswith(KEPT) for path in after)

    tiles.append(0)
    again = run_cli(*words, "-o", yard.target, "--resume")
    assert again.code == 0, again.err
    assert {path for path in picture(yard.target.parent) if path.startswith(KEPT)} == set()

    tiles.append(0)
    whole = run_cli(*words, "-o", yard.root / "whole.safetensors")
    assert whole.code == 0, whole.err
    assert raw_file(yard.target).data == raw_file(yard.root / "whole.safetensors").data
    assert 0 < tiles[1] < tiles[2]  # the second run did not begin anew
