"""Runs that end before their time: nothing at the target, and `--resume` gives the bytes of an undisturbed run."""

import hashlib
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fluxsmith.cli.progress import RunDisplay
from fluxsmith.io.writer import partial_path
from fluxsmith.methods import METHODS
from support.cli_runs import CliRun, run_cli, start_cli
from support.folder_pictures import picture
from support.killed_runs import MOMENTS, NOTED, Pace, kill_runs
from support.large_flux import save_large
from support.tiny_flux import TinyCheckpoints

Arguments = list[object]

# An output is one file, or a folder of shards.
KINDS: dict[str, tuple[str, Arguments]] = {
    "file": ("merged.safetensors", []),
    "shards": ("merged", ["--layout", "diffusers", "--shard-size", "100KB"]),
}
JOBS = 92  # of the tiny model: one for each of its tensors


@pytest.fixture
def pace() -> Iterator[Pace]:
    """The method `paced` in this process, as long as a test lasts."""
    pace = Pace()
    pace.method()
    yield pace
    del METHODS["paced"]


def merge(tiny: TinyCheckpoints, output: Path, *more: object, formula: str = "paced(a, b)", a: Path | None = None) -> Arguments:
    return ["merge", formula, "-m", f"a={a or tiny.a}", "-m", f"b={tiny.b}", "-o", output, "--no-report", *more]


def hashes(output: Path) -> dict[str, str]:
    """sha256 of every file of an output, whole; the name of a single file does not count."""
    files = sorted(output.iterdir()) if output.is_dir() else [output]
    return {file.name if output.is_dir() else "": hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def noted(output: Path) -> set[int]:
    """The jobs that the journal of an unfinished output lists."""
    lines = (partial_path(output) / "journal").read_text().splitlines()
    return {job for line in lines[1:] if line.endswith("]") for job in json.loads(line)}


def succeeds(arguments: Arguments) -> CliRun:
    run = run_cli(*arguments)
    assert run.code == 0, run.err
    return run


def fails(arguments: Arguments, code: int, error: str) -> str:
    run = run_cli(*arguments)
    assert (run.code, f"error[{error}]" in run.err) == (code, True), run.err
    assert "Traceback" not in run.err
    return run.err


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the next run in this process be interrupted, as by Ctrl-C, after some tiles."""

    def stop_after(tiles: int) -> None:
        real, counter = RunDisplay.advanced, itertools.count(1)

        def advanced(self: RunDisplay, *arguments: Any) -> None:
            real(self, *arguments)
            if next(counter) == tiles:
                self._interrupt(signal.SIGINT, None)  # pyright: ignore[reportPrivateUsage]

        monkeypatch.setattr(RunDisplay, "advanced", advanced)

    return stop_after


@pytest.fixture
def kept(tiny: TinyCheckpoints, tmp_path: Path, pace: Pace, stop_after: Callable[[int], None]) -> Path:
    """The target of a run that was stopped after a third of its work; what is done lies beside it."""
    output = tmp_path / "merged.safetensors"
    stop_after(JOBS // 3)
    fails(merge(tiny, output, "--threads", 1), 130, "run.stopped")
    assert not output.exists()
    assert len(noted(output)) == JOBS // 3
    pace.calls = 0
    return output


@pytest.fixture(scope="module")
def killed(tiny: TinyCheckpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder for every moment and kind, in which a run was killed."""
    root = tmp_path_factory.mktemp("killed")
    runs: list[tuple[str, Arguments]] = []
    for moment in [*MOMENTS, "half way"]:
        for kind, (name, options) in KINDS.items():
            place = root / f"{moment}, {kind}"
            place = place if not place.exists() else root / f"{moment}, {kind}, again"
            place.mkdir()
            runs.append((moment, merge(tiny, place / name, *options, "--threads", 1)))
    kill_runs(runs)
    return root


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_leaves_nothing_and_can_be_resumed(tiny: TinyCheckpoints, killed: Path, pace: Pace, moment: str, kind: str) -> None:
    name, options = KINDS[kind]
    output = killed / f"{moment}, {kind}" / name
    assert [path.name for path in output.parent.iterdir()] == [f".{name}.fluxsmith-partial"]
    before = noted(output) if (partial_path(output) / "journal").exists() else set[int]()
    assert len(before) in {"half way": range(NOTED, JOBS), "after the headers": [JOBS]}.get(moment, [0])

    succeeds(merge(tiny, output, *options, "--resume"))

    assert pace.calls == JOBS - len(before)
    undisturbed = output.parent / f"undisturbed{output.suffix}"
    succeeds(merge(tiny, undisturbed, *options))
    assert hashes(output) == hashes(undisturbed)
    assert sorted(path.name for path in output.parent.iterdir()) == sorted([name, undisturbed.name])


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_kill_a_run_may_begin_anew(tiny: TinyCheckpoints, killed: Path, tmp_path: Path, pace: Pace, kind: str) -> None:
    """Without --resume nothing of the old run is used, even where its output had other files."""
    output = killed / f"half way, {kind}, again" / KINDS[kind][0]
    assert len(noted(output)) >= NOTED
    other: Arguments = ["--layout", "diffusers", "--shard-size", "400KB"] if kind == "shards" else ["--dtype", "fp32"]
    succeeds(merge(tiny, output, *other))
    assert pace.calls == JOBS
    succeeds(merge(tiny, tmp_path / f"alone{output.suffix}", *other))
    assert hashes(output) == hashes(tmp_path / f"alone{output.suffix}")


def test_kill_in_the_middle_of_a_large_merge(tmp_path: Path) -> None:
    """The program as it is: nothing is slowed down, the journal is written once a second."""
    a, b = (save_large(tmp_path / f"{name}.safetensors", seed) for seed, name in enumerate("ab"))
    output = tmp_path / "out" / "merged.safetensors"
    output.parent.mkdir()
    command: Arguments = ["merge", "ties(a, b, 0.5*a + 0.5*b, density=0.3)", "-m", f"a={a}", "-m", f"b={b}"]
    process = start_cli(*command, "-o", output, "--threads", 1)
    done: set[int] = set()
    while not done and process.poll() is None:
        time.sleep(0.02)
        with suppress(FileNotFoundError):
            done = noted(output)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"the run was over before its journal said anything\n{err}"
    assert [path.name for path in output.parent.iterdir()] == [partial_path(output).name]

    resumed = run_cli(*command, "-o", output, "--resume", "--json")
    assert resumed.code == 0, resumed.err
    undisturbed = tmp_path / "undisturbed.safetensors"
    succeeds([*command, "-o", undisturbed])
    assert hashes(output) == hashes(undisturbed)


# A method that takes its time, for runs in a process of their own that are interrupted.
SLOW = """
import time, fluxsmith as fs
calls = 0

@fs.merge_method
def paced(a: fs.Weight, b: fs.Weight) -> fs.Weight:
    global calls
    calls += 1
    time.sleep({pause} if calls > 10 else 0)
    return (a + b) / 2
"""


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c(tiny: TinyCheckpoints, tmp_path: Path, pace: Pace, times: int) -> None:
    """Once: the running tile ends, the journal is kept, the message says how to go on. Twice: at once."""
    output = tmp_path / "merged.safetensors"
    pause = 0.2 if times == 1 else 60
    hurry = "from fluxsmith.engine.journal import Journal; Journal.INTERVAL = 0.01\n"
    process = start_cli(*merge(tiny, output, "--threads", 1), before=hurry + SLOW.format(pause=pause))
    done: set[int] = set()
    while len(done) < 10 and process.poll() is None:
        time.sleep(0.01)
        with suppress(FileNotFoundError):
            done = noted(output)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    first = process.stderr.readline() + process.stderr.readline()
    assert "Ctrl-C again stops now" in first
    if times == 2:
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    if times == 1:
        assert "error[run.stopped]" in err
        assert "--resume" in err
    assert [path.name for path in tmp_path.iterdir()] == [partial_path(output).name]
    before = noted(output)
    assert 10 <= len(before) < JOBS

    succeeds(merge(tiny, output, "--resume"))
    assert pace.calls == JOBS - len(before)
    succeeds(merge(tiny, tmp_path / "undisturbed.safetensors"))
    assert hashes(output) == hashes(tmp_path / "undisturbed.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_resume_without_anything_kept_just_runs(tiny: TinyCheckpoints, tmp_path: Path, pace: Pace, kind: str) -> None:
    name, options = KINDS[kind]
    succeeds(merge(tiny, tmp_path / name, *options, "--resume"))
    succeeds(merge(tiny, tmp_path / f"other{Path(name).suffix}", *options))
    assert hashes(tmp_path / name) == hashes(tmp_path / f"other{Path(name).suffix}")


def finishes(tiny: TinyCheckpoints, output: Path, pace: Pace, *, calls: int, options: Arguments | None = None) -> None:
    """Resume, and hold that this took so many calls of the method and gave the bytes of an undisturbed run."""
    pace.calls = 0
    succeeds(merge(tiny, output, "--resume", *(options or [])))
    assert pace.calls == calls
    succeeds(merge(tiny, output.with_name("undisturbed.safetensors")))
    assert hashes(output) == hashes(output.with_name("undisturbed.safetensors"))


def test_what_was_done_is_not_done_again(tiny: TinyCheckpoints, kept: Path, pace: Pace) -> None:
    finishes(tiny, kept, pace, calls=JOBS - JOBS // 3, options=["--threads", 3])


def test_a_run_may_be_stopped_again_and_again(tiny: TinyCheckpoints, kept: Path, pace: Pace, stop_after: Callable[[int], None]) -> None:
    stop_after(JOBS // 3)
    fails(merge(tiny, kept, "--resume", "--threads", 1), 130, "run.stopped")
    assert len(noted(kept)) == 2 * (JOBS // 3)
    finishes(tiny, kept, pace, calls=JOBS - 2 * (JOBS // 3))


# What may differ from the run that was stopped: then its work cannot be used, and must not be lost either.
OTHERS: dict[str, Arguments] = {
    "formula": [],
    "dtype": ["--dtype", "fp32"],
    "layout": ["--layout", "comfy"],
    "seed": ["--seed", 5],
}


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_another_recipe_is_refused_and_the_work_kept(tiny: TinyCheckpoints, kept: Path, pace: Pace, options: Arguments) -> None:
    before = picture(kept.parent)
    formula = "paced(a, b)" if options else "0.5*a + 0.5*b"
    err = fails(merge(tiny, kept, "--resume", *options, formula=formula), 4, "output.other-run")
    assert str(kept) in err
    assert "--resume" in err
    assert picture(kept.parent) == before
    finishes(tiny, kept, pace, calls=JOBS - JOBS // 3)


@pytest.mark.parametrize("change", ["touched", "replaced"])
def test_an_input_that_changed_in_between_is_refused(
    tiny: TinyCheckpoints, tmp_path: Path, pace: Pace, stop_after: Callable[[int], None], change: str
) -> None:
    output, model = tmp_path / "merged.safetensors", tmp_path / "model.safetensors"
    shutil.copy(tiny.a, model)
    stop_after(JOBS // 3)
    fails(merge(tiny, output, a=model), 130, "run.stopped")
    if change == "touched":
        os.utime(model, ns=(1, 1))
    else:
        shutil.copy(tiny.c, tmp_path / "new")
        os.replace(tmp_path / "new", model)
    before = picture(tmp_path)
    err = fails(merge(tiny, output, "--resume", a=model), 4, "output.other-run")
    assert "inputs that have changed" in err
    assert picture(tmp_path) == before
    succeeds(merge(tiny, output, a=model))
    succeeds(merge(tiny, tmp_path / "undisturbed.safetensors", a=model))
    assert hashes(output) == hashes(tmp_path / "undisturbed.safetensors")


# Commands that fail before or while they resume: what was kept before stays.
FAILURES: dict[str, tuple[Arguments, int, str]] = {
    "memory": (["--memory", "1MB"], 5, "plan.not-enough-memory"),
    "option": (["--memory", "much"], 2, "usage.size"),
}


@pytest.mark.parametrize(("options", "code", "error"), FAILURES.values(), ids=FAILURES)
def test_a_failed_attempt_to_resume_loses_nothing(
    tiny: TinyCheckpoints, kept: Path, pace: Pace, options: Arguments, code: int, error: str
) -> None:
    fails(merge(tiny, kept, "--resume", *options), code, error)
    assert len(noted(kept)) == JOBS // 3
    finishes(tiny, kept, pace, calls=JOBS - JOBS // 3)


def test_a_full_disk_while_resuming_loses_nothing(tiny: TinyCheckpoints, kept: Path, pace: Pace, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        fails(merge(tiny, kept, "--resume"), 5, "output.disk-full")
    finishes(tiny, kept, pace, calls=JOBS - JOBS // 3)


def test_room_that_is_held_already_counts_as_free(tiny: TinyCheckpoints, kept: Path, pace: Pace, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
        pace.calls = 0
        succeeds(merge(tiny, kept, "--resume"))
    assert pace.calls == JOBS - JOBS // 3


def test_a_torn_last_line_of_the_journal_is_not_believed(tiny: TinyCheckpoints, kept: Path, pace: Pace) -> None:
    journal = partial_path(kept) / "journal"
    done = noted(kept)
    journal.write_text(journal.read_text() + "[40, 4")
    finishes(tiny, kept, pace, calls=JOBS - len(done))


@pytest.mark.parametrize("content", ["", "no journal\n", "\x00" * 64], ids=["empty", "text", "zeros"])
def test_a_journal_that_cannot_be_read_is_refused(tiny: TinyCheckpoints, kept: Path, pace: Pace, content: str) -> None:
    (partial_path(kept) / "journal").write_text(content)
    fails(merge(tiny, kept, "--resume"), 4, "output.other-run")
    succeeds(merge(tiny, kept))
    assert pace.calls == JOBS


@pytest.mark.parametrize("loss", ["file gone", "file shorter", "journal gone"])
def test_work_that_is_not_there_is_done_again(tiny: TinyCheckpoints, kept: Path, pace: Pace, loss: str) -> None:
    data = partial_path(kept) / kept.name
    if loss == "file gone":
        data.unlink()
    elif loss == "file shorter":
        os.truncate(data, data.stat().st_size - 1)
    else:
        (partial_path(kept) / "journal").unlink()
    finishes(tiny, kept, pace, calls=JOBS)


def test_the_journal_only_lists_what_is_on_the_disk(
    tiny: TinyCheckpoints, tmp_path: Path, pace: Pace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every job that is listed was written, and synced after it was written, before it was listed."""
    from fluxsmith.engine.journal import Journal
    from fluxsmith.io.writer import FileSink

    synced: set[int] = set()
    written: set[int] = set()
    early: set[int] = set()
    real_sync, real_note, real_flush = FileSink.sync, Journal.note, Journal._flush  # pyright: ignore[reportPrivateUsage]

    def note(self: Journal, job: int) -> None:
        written.add(job)
        real_note(self, job)

    def sync(self: FileSink) -> None:
        before = set(written)
        real_sync(self)
        synced.update(before)

    def flush(self: Journal) -> None:
        real_flush(self)
        early.update(noted(tmp_path / "merged.safetensors") - synced)

    monkeypatch.setattr(Journal, "INTERVAL", 0.002)
    monkeypatch.setattr(Journal, "note", note)
    monkeypatch.setattr(Journal, "_flush", flush)
    monkeypatch.setattr(FileSink, "sync", sync)
    succeeds(merge(tiny, tmp_path / "merged.safetensors"))
    assert written == set(range(JOBS))
    assert early == set()
