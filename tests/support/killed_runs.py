"""Runs of the program that die by SIGKILL at a chosen moment, so that nothing in them can tidy up.

One process loads the program and forks a run for every moment, as loading takes longer than the runs.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import fluxsmith as fs
from fluxsmith.engine.journal import Journal
from fluxsmith.io import writer
from fluxsmith.methods import Method

__all__ = ["MOMENTS", "Pace", "kill_runs"]

NOTED = 20  # jobs in the journal when a run dies half way
HELD = 60  # calls of the method after which such a run goes no further


class Pace:
    """The merge method `paced(a, b)`, the mean of two models. It counts its calls, and stops for good after `limit`."""

    def __init__(self, limit: int | None = None) -> None:
        self.calls, self.limit = 0, limit

    def method(self) -> Method:
        """Register the method under its name."""

        @fs.merge_method
        def paced(a: fs.Weight, b: fs.Weight) -> fs.Weight:
            """(a + b) / 2."""
            self.calls += 1
            if self.limit is not None and self.calls > self.limit:
                time.sleep(60)
            return (a + b) / 2

        return paced


def kill_runs(runs: Sequence[tuple[str, Sequence[object]]]) -> None:
    """Start runs, each given by a moment of MOMENTS and its arguments, and see each die at its moment."""
    orders = json.dumps([(moment, [str(word) for word in arguments]) for moment, arguments in runs])
    paths = [str(Path(__file__).parent.parent), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", "from support.killed_runs import serve; serve()"],
        input=orders, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout)
    assert ends == [[moment, -signal.SIGKILL] for moment, _ in runs], f"{ends}\n{done.stderr}"


def serve() -> None:
    """The other side of `kill_runs`: orders on stdin, how every run ended on stdout."""
    for name in ("torch", "ruamel.yaml", "fluxsmith.cli.merge", "fluxsmith.engine.merging", "fluxsmith.reports.card"):
        importlib.import_module(name)  # once, before the forks
    ends: list[tuple[str, int]] = []
    for moment, arguments in json.loads(sys.stdin.read()):
        child = os.fork()
        if child == 0:
            _run(moment, arguments)
        ends.append((moment, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
    print(json.dumps(ends))


def _run(moment: str, arguments: list[str]) -> NoReturn:
    from fluxsmith.cli.main import main

    signal.alarm(60)
    os.dup2(2, 1)
    pace = Pace()
    pace.method()
    MOMENTS[moment](pace)
    main(arguments)
    os._exit(0)


def _die(*_: Any, **__: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _patch(place: object, name: str, make: Callable[[Any], Any]) -> None:
    """Put `make(what was there)` in the place of a function."""
    setattr(place, name, make(getattr(place, name)))


def _before_the_journal(pace: Pace) -> None:
    _patch(Journal, "start", lambda real: _die)


def _in_the_journals_first_line(pace: Pace) -> None:
    _patch(os, "replace", lambda real: lambda source, target: _die() if Path(target).name == "journal" else real(source, target))


def _half_way(pace: Pace) -> None:
    pace.limit = HELD
    Journal.INTERVAL = 0.005

    def dying(real: Callable[[Journal], None]) -> Callable[[Journal], None]:
        def flush(journal: Journal) -> None:
            real(journal)
            path: Path = journal._path  # pyright: ignore[reportPrivateUsage]
            if sum(len(json.loads(line)) for line in path.read_text().splitlines()[1:]) >= NOTED:
                _die()

        return flush

    _patch(Journal, "_flush", dying)


def _after_the_headers(pace: Pace) -> None:
    _patch(writer, "_verify", lambda real: _die)


def _without_journal(pace: Pace) -> None:
    """The journal is gone, the output is not yet in its place."""
    _patch(Path, "unlink", lambda real: lambda path, **more: _die() if path.name == "lock" else real(path, **more))


def _at_the_rename(pace: Pace) -> None:
    _patch(os, "replace", lambda real: lambda source, target: real(source, target) if "journal" in str(source) else _die())
    _patch(os, "rename", lambda real: _die)


MOMENTS: dict[str, Callable[[Pace], None]] = {
    "before the journal": _before_the_journal,
    "in the journal's first line": _in_the_journals_first_line,
    "half way": _half_way,
    "after the headers": _after_the_headers,
    "without journal": _without_journal,
    "at the rename": _at_the_rename,
}
