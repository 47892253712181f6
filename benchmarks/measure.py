"""Running programs as children: wall time, CPU time and peak memory of each, in turn, from the page cache."""

import os
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Failed", "Program", "Runs", "Sample", "in_turn", "out_of", "remove", "run", "warm"]

_CHUNK = 1 << 23
_LEAST = 0.01  # seconds: less than that cannot be told from the noise of a start
_LOOK = 0.05  # seconds between two looks at a child's anonymous memory


class Failed(Exception):
    """A program ended with an error, or was stopped; the message has the end of what it said."""


@dataclass(frozen=True)
class Sample:
    """One run. `peak` is the largest resident set as the kernel reports it, which counts file pages that are mapped;
    `anonymous` is the largest seen of the part that is not backed by files (looked at every 50 ms). In bytes.
    """

    wall: float
    cpu: float
    peak: int
    anonymous: int
    said: str = ""


@dataclass(frozen=True)
class Program:
    """A command line with the files that it reads (warmed before) and what it writes (removed afterwards)."""

    name: str
    command: Sequence[str]
    reads: Sequence[Path] = ()
    writes: Path | None = None
    limit: float = 3600.0
    prepare: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Runs:
    """All runs of one program."""

    name: str
    samples: list[Sample] = field(default_factory=list[Sample])

    @property
    def wall(self) -> float:
        return statistics.median(s.wall for s in self.samples)

    @property
    def cpu(self) -> float:
        return statistics.median(s.cpu for s in self.samples)

    @property
    def peak(self) -> int:
        return max(s.peak for s in self.samples)

    @property
    def anonymous(self) -> int:
        return max(s.anonymous for s in self.samples)

    def ratio(self, floor: "Runs", start: float = 0.0, floor_start: float = 0.0) -> float:
        """How many times as long as `floor`, each without its start; the median over the rounds, pair by pair."""
        pairs = zip(self.samples, floor.samples, strict=True)
        return statistics.median((mine.wall - start) / max(other.wall - floor_start, _LEAST) for mine, other in pairs)


def run(program: Program, environment: Mapping[str, str]) -> Sample:
    """Run a program once.

    Raises Failed where it exits with an error or takes longer than its limit.
    """
    begin = time.perf_counter()
    child = subprocess.Popen(
        list(program.command), env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    watch = _Watch(child, program.limit)
    said = child.stdout.read() if child.stdout else b""
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - begin
    child.returncode = os.waitstatus_to_exitcode(status)
    watch.end()
    text = said.decode(errors="replace")
    if watch.stopped:
        raise Failed(f"more than {program.limit:.0f} s (stopped)")
    if child.returncode != 0:
        raise Failed(f"exit code {child.returncode}: {text[-600:].strip()}")
    return Sample(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, watch.anonymous, text)


class _Watch:
    """Looks at a child from a thread: its anonymous memory, and whether its time is up."""

    def __init__(self, child: "subprocess.Popen[bytes]", limit: float) -> None:
        self._child, self._limit = child, limit
        self.anonymous, self.stopped = 0, False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        begin = time.monotonic()
        while not self._end.wait(_LOOK):
            self.anonymous = max(self.anonymous, _anonymous(self._child.pid))
            if time.monotonic() - begin > self._limit:
                self.stopped = True
                self._child.send_signal(signal.SIGKILL)
                return

    def end(self) -> None:
        self._end.set()
        self._thread.join()


def _anonymous(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0


def warm(paths: Sequence[Path]) -> None:
    """Bring files into the page cache, as `cat FILE > /dev/null` does; folders with all that is in them."""
    buffer = bytearray(_CHUNK)
    for path in paths:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            with file.open("rb", buffering=0) as stream:
                while stream.readinto(buffer):
                    pass


def in_turn(programs: Sequence[Program], rounds: int, environment: Mapping[str, str], keep: Sequence[str] = ()) -> dict[str, Runs]:
    """Run programs one after another, `rounds` times: inputs warm before each, output removed and disk at rest after.

    The last output of the programs named in `keep` stays. A program that fails is left out of the result.
    """
    found = {program.name: Runs(program.name) for program in programs}
    failed: set[str] = set()
    for number in range(rounds):
        for program in programs:
            if program.name in failed:
                continue
            program.prepare()
            warm(program.reads)
            try:
                sample = run(program, environment)
            except Failed as error:
                print(f"  {program.name}: {error}", flush=True)
                failed.add(program.name)
                continue
            found[program.name].samples.append(sample)
            print(f"  {program.name}: {sample.wall:.2f} s, {sample.peak / 1e6:.0f} MB", flush=True)
            last = number == rounds - 1
            if program.writes is not None and not (last and program.name in keep):
                remove(program.writes)
            os.sync()
    return {name: runs for name, runs in found.items() if name not in failed}


def out_of(program: Program) -> Path:
    """Where a program writes."""
    if program.writes is None:
        raise ValueError(f"{program.name} writes nothing")
    return program.writes


def remove(path: Path) -> None:
    """Remove a file or a folder of files, if it is there."""
    if path.is_dir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
