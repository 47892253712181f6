"""Two runs that write one output: the second is refused, the first does not notice."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bad_input.cases import Yard
from support.cli_runs import run_cli, start_cli
from support.folder_pictures import picture

# A method of a user's that waits for a file before it goes on; its first call makes the file `started`.
PATIENT = """
import time
from pathlib import Path
import fluxsmith as fs

@fs.merge_method
def patient(a: fs.Weight, b: fs.Weight) -> fs.Weight:
    Path({started!r}).touch()
    while not Path({go!r}).exists():
        time.sleep(0.01)
    return (a + b) / 2
"""


@contextmanager
def writing(yard: Yard, output: Path) -> Generator[None]:
    """Another process is writing `output`, and goes on to its end when the block ends."""
    started, go = yard.root / "started", yard.root / "go"
    arguments = yard.merge(yard.tiny.a, formula="patient(a, b)", output=output)
    process = start_cli(*arguments, before=PATIENT.format(started=str(started), go=str(go)))
    try:
        end = time.monotonic() + 60
        while not started.exists():
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.01)
        yield
        go.touch()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", ["merged.safetensors", "folder"])
def test_a_second_writer_is_refused(yard: Yard, name: str) -> None:
    output = yard.target.parent / name
    with writing(yard, output):
        before = picture(yard.target.parent)
        for options in ([], ["--resume"], ["--shard-size", "50KB"] if name == "folder" else ["--dtype", "fp32"]):
            run = run_cli(*yard.merge(yard.tiny.c, *options, output=output))
            assert (run.code, "error[output.in-use]" in run.err, str(output) in run.err) == (5, True, True), run.err
            assert "fix" in run.err
            assert "Traceback" not in run.err
        assert picture(yard.target.parent) == before
    alone = yard.target.parent / f"alone{output.suffix}"
    assert run_cli(*yard.merge(yard.tiny.a, output=alone)).code == 0
    assert tensor_bytes(output) == tensor_bytes(alone)
    assert sorted(path.name for path in yard.target.parent.glob(".*")) == []


def tensor_bytes(output: Path) -> list[bytes]:
    """What stands after the headers of an output's files."""
    files = sorted(output.glob("*.safetensors")) if output.is_dir() else [output]
    contents = [file.read_bytes() for file in files]
    return [content[8 + int.from_bytes(content[:8], "little") :] for content in contents]


def test_a_lock_whose_file_was_taken_away_is_none(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends takes its folder away; who waited at the door must not write into the folder of a third."""
    import fcntl

    real = fcntl.flock

    def flock(fd: int, operation: int) -> None:
        real(fd, operation)
        (yard.target.parent / f".{yard.target.name}.fluxsmith-partial" / "lock").unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    run = run_cli(*yard.merge(yard.tiny.a))
    assert (run.code, "error[output.in-use]" in run.err) == (5, True), run.err
