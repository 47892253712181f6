"""Disks that are full, broken or closed, and files that change under the run: the target stays what it was."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bad_input.cases import Arguments, Yard
from fluxsmith.engine import execution
from fluxsmith.io import shards, writer
from support.cli_runs import CliRun, run_cli
from support.folder_pictures import picture


def fails(yard: Yard, arguments: Arguments, code: int, error: str, *words: str) -> CliRun:
    """Run, and hold that it fails in this way and leaves all as it was."""
    before = picture(yard.root)
    run = run_cli(*arguments)
    assert f"error[{error}]: " in run.err
    assert run.code == code
    assert [word for word in words if word not in run.err] == []
    assert "Traceback" not in run.err
    assert picture(yard.root) == before
    return run


def failing(number: int, real: Callable[..., Any], *, after: int = 0) -> Callable[..., Any]:
    """A function of the operating system that works `after` times and then fails with an error number."""
    calls = iter(range(after))

    def call(*arguments: Any, **more: Any) -> Any:
        if next(calls, None) is None:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **more)

    return call


def test_a_disk_too_small_is_seen_before_anything_is_written(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.EIO, os.posix_fallocate))
    fails(yard, yard.merge(yard.tiny.a), 5, "plan.not-enough-disk", "0.1 MB are free", str(yard.target.parent), "-o")


# Where a disk may turn out to be full, by the call that says so and how often it works before.
FULL = {
    "when room is reserved": ("posix_fallocate", 0),
    "at the first write": ("pwrite", 0),
    "at a late write": ("pwrite", 60),
    "when the header is written": ("pwrite", 92),
    "at the first sync": ("fdatasync", 0),
    "at the last sync": ("fsync", 0),
}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=["full", "quota"])
@pytest.mark.parametrize(("function", "after"), FULL.values(), ids=FULL)
def test_a_full_disk(yard: Yard, monkeypatch: pytest.MonkeyPatch, function: str, after: int, number: int) -> None:
    monkeypatch.setattr(os, function, failing(number, getattr(os, function), after=after))
    fails(yard, yard.merge(yard.tiny.a), 5, "output.disk-full", str(yard.target), os.strerror(number), "free some space")


def test_a_disk_that_is_full_for_the_second_shard(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC, os.posix_fallocate, after=1))
    arguments = yard.merge(yard.tiny.sharded, "--shard-size", "100KB", output=yard.target.parent / "new")
    fails(yard, arguments, 5, "output.disk-full", str(yard.target.parent / "new"))


@pytest.mark.parametrize("name", ["config.json", "README.md"])
def test_a_disk_that_is_full_for_the_small_files(yard: Yard, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = Path.write_text

    def write_text(path: Path, text: str, *more: Any, **options: Any) -> int:
        if path.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, text, *more, **options)

    monkeypatch.setattr(Path, "write_text", write_text)
    arguments = yard.merge(yard.tiny.sharded, output=yard.target.parent / "new" / "folder")
    fails(yard, arguments, 5, "output.disk-full", str(yard.target.parent / "new" / "folder"))


def test_what_a_sync_in_the_background_meets_is_not_lost(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells of a write that failed once only: a later sync says that all is well."""
    told: list[int] = []
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        if not told:
            told.append(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr("fluxsmith.engine.journal.Journal.INTERVAL", 0.005)
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    wait_for(monkeypatch, lambda: bool(told))
    fails(yard, yard.merge(yard.tiny.a), 5, "output.not-writable", str(yard.target), os.strerror(errno.EIO))


def wait_for(monkeypatch: pytest.MonkeyPatch, condition: Callable[[], bool], *, then: Callable[[], object] = lambda: None) -> None:
    """Hold a run at the end of its work until something has happened; `then` is done before it goes on."""
    import time

    real = execution.Execution.run

    def run(self: execution.Execution) -> execution.Outcome:
        outcome = real(self)
        end = time.monotonic() + 10
        while not condition() and time.monotonic() < end:
            time.sleep(0.002)
        then()
        return outcome

    monkeypatch.setattr(execution.Execution, "run", run)


def test_a_file_system_that_cannot_reserve_room_is_used(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.EOPNOTSUPP, os.posix_fallocate))
    run = run_cli(*yard.merge(yard.tiny.a))
    assert run.code == 0, run.err


def test_an_old_folder_comes_back_where_the_new_one_cannot_take_its_place(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    output = yard.target.parent / "folder"
    assert run_cli(*yard.merge(yard.tiny.a, output=output)).code == 0
    real = os.rename

    def rename(source: str | Path, target: str | Path) -> None:
        if Path(target) == output and Path(source) == writer.partial_path(output):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    fails(yard, yard.merge(yard.tiny.schnell, "--guidance", "drop", output=output), 5, "output.not-writable", str(output))


def test_an_output_that_reads_back_otherwise_is_not_put_in_place(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shards.encode_header
    monkeypatch.setattr(shards, "encode_header", lambda *arguments: real(*arguments).replace(b"img_in.bias", b"gmi_in.bias"))
    fails(yard, yard.merge(yard.tiny.a), 3, "output.verify", "merged.safetensors")


def test_a_folder_that_may_not_be_written(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "mkdir", failing(errno.EACCES, os.mkdir))
    fails(yard, yard.merge(yard.tiny.a), 5, "output.not-writable", str(yard.target), os.strerror(errno.EACCES), "-o")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(yard: Yard) -> None:
    yard.target.parent.chmod(0o555)
    try:
        fails(yard, yard.merge(yard.tiny.a), 5, "output.not-writable", str(yard.target), os.strerror(errno.EACCES))
    finally:
        yard.target.parent.chmod(0o755)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_input_that_may_not_be_read(yard: Yard) -> None:
    yard.copy(yard.tiny.a).chmod(0)
    run = run_cli(*yard.merge(yard.broken))
    assert (run.code, "error[file.unreadable]" in run.err) == (3, True)


# Calls that read an input, each of which a broken disk or missing rights may stop.
READS = {
    "opened": ("pathlib.Path.open", errno.EACCES),
    "looked at": ("pathlib.Path.exists", errno.EACCES),
    "read": ("os.preadv", errno.EIO),
}


@pytest.mark.parametrize(("function", "number"), READS.values(), ids=READS)
def test_an_input_that_cannot_be_read(yard: Yard, monkeypatch: pytest.MonkeyPatch, function: str, number: int) -> None:
    yard.copy(yard.tiny.a)
    arguments = yard.merge(yard.broken)
    before = picture(yard.root)
    with monkeypatch.context() as patch:
        patch.setattr(function, failing(number, lambda *_: None))
        run = run_cli(*arguments)
    assert (run.code, "error[file.unreadable]" in run.err) == (3, True), run.err
    assert str(yard.broken) in run.err
    assert os.strerror(number) in run.err
    assert picture(yard.root) == before


# What may happen to an input between its planning and the end of the run.
CHANGES: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "touched": (lambda file: os.utime(file, ns=(1, 1)), 4, "input.changed"),
    "replaced": (lambda file: os.replace(shutil.copy(file, f"{file}.new"), file), 4, "input.changed"),
    "longer": (lambda file: file.open("ab").write(b"x"), 4, "input.changed"),
    "gone": (lambda file: file.unlink(), 4, "input.changed"),
}


@pytest.mark.parametrize(("change", "code", "error"), CHANGES.values(), ids=CHANGES)
def test_an_input_that_changes_under_the_run(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], code: int, error: str
) -> None:
    model = yard.copy(yard.tiny.a, "model.safetensors")
    arguments = yard.merge(model)
    before = picture(yard.target.parent)
    wait_for(monkeypatch, lambda: True, then=lambda: change(model))
    run = run_cli(*arguments)
    assert (run.code, f"error[{error}]" in run.err, str(model) in run.err) == (code, True, True), run.err
    assert picture(yard.target.parent) == before


@pytest.mark.parametrize("change", ["gone", "shorter"])
def test_an_input_that_changes_before_it_is_read(yard: Yard, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    model = yard.copy(yard.tiny.a, "model.safetensors")
    arguments = yard.merge(model)
    before = picture(yard.target.parent)
    real = execution.Execution.run

    def run_late(self: execution.Execution) -> execution.Outcome:
        model.unlink() if change == "gone" else os.truncate(model, 20_000)
        return real(self)

    monkeypatch.setattr(execution.Execution, "run", run_late)
    run = run_cli(*arguments)
    assert run.code == 3, run.err
    assert f"error[file.{'unreadable' if change == 'gone' else 'truncated'}]" in run.err
    assert str(model) in run.err
    assert picture(yard.target.parent) == before


@pytest.mark.parametrize("content", ["", "[]", "7", "\xff\xfe", '{"x": '], ids=["empty", "list", "number", "bytes", "cut"])
def test_a_broken_memory_of_hashes_is_done_without(yard: Yard, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    memory = yard.root / "cache" / "fluxsmith" / "hashes.json"
    memory.parent.mkdir(parents=True)
    memory.write_bytes(content.encode("latin1"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(yard.root / "cache"))
    run = run_cli(*yard.merge(yard.tiny.a))
    assert run.code == 0, run.err
