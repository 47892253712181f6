"""What all rows share: the work folder with its inputs, command lines of fluxsmith, and the time of a program's start."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from benchmarks.inputs import write_sparse
from benchmarks.measure import Failed, Program, Runs, in_turn, remove

__all__ = ["Bench", "Line", "Row", "Section"]


@dataclass(frozen=True)
class Row:
    """One number: what it is, what is to hold, what was measured, and whether that was reached (None: no claim)."""

    what: str
    hold: str
    measured: str
    reached: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One program beside the others at the same work."""

    program: str
    wall: float
    start: float
    peak: int
    anonymous: int
    times: str
    equal: str


@dataclass
class Section:
    """What a group of rows found."""

    rows: list[Row] = field(default_factory=list[Row])
    lines: list[Line] = field(default_factory=list[Line])


@dataclass
class Bench:
    """One run of the benchmark. `shape` and `full` name the shapes of the ordinary and of the full-size rows."""

    work: Path
    shape: str = "mini"
    full: str = "full"
    rounds: int = 3
    cores: int = 2
    peers: Path = Path(".venv-bench")
    mergeflux: Path | None = None
    keep: bool = False
    start_rounds: int = 5
    runs: dict[str, Runs] = field(default_factory=dict[str, Runs])

    @cached_property
    def environment(self) -> dict[str, str]:
        """The environment of all programs: a cache of hashes of their own, and threads for the cores in use."""
        threads = str(self.cores)
        own = {"XDG_CACHE_HOME": str(self.work / "cache"), "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        return {**os.environ, **own, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "COLUMNS": "100"}

    # ---- inputs ----

    def file(self, model: str, shape: str | None = None) -> Path:
        """A model as one BFL file, made on first use."""
        return self._made(model, "bfl", shape or self.shape, ".safetensors")

    def folder(self, model: str, shape: str | None = None) -> Path:
        """A model as a diffusers folder of shards, made on first use."""
        return self._made(model, "diffusers", shape or self.shape, "")

    def _made(self, model: str, layout: str, shape: str, suffix: str) -> Path:
        path = self.work / f"{shape}-{model}-{layout}{suffix}"
        if not path.exists():
            print(f"  writing {path.name}", flush=True)
            self.python("benchmarks.inputs", shape, model, layout, path)
        return path

    def sparse(self, name: str) -> Path:
        """A sparse file of the full shape."""
        path = self.work / f"{self.full}-{name}-sparse.safetensors"
        if not path.exists():
            write_sparse(self.full, path)
        return path

    def links(self, files: Sequence[Path], count: int) -> list[Path]:
        """`count` names for a few files: links, which take no room."""
        found: list[Path] = []
        for i in range(count):
            source = files[i % len(files)]
            link = source.with_name(f"{source.stem}-{i}{source.suffix}")
            link.unlink(missing_ok=True)
            link.symlink_to(source.absolute())
            found.append(link)
        return found

    def release(self) -> None:
        """Remove the inputs made so far, unless they are to be kept: full-size outputs need the room."""
        if self.keep:
            return
        for path in self.work.iterdir():
            if path.name != "cache":
                remove(path)

    # ---- programs ----

    def python(self, module: str, *arguments: object) -> str:
        """Run one of the benchmark's own programs; what it prints."""
        command = [sys.executable, "-m", module, *map(str, arguments)]
        done = subprocess.run(command, env=self.environment, check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout

    def fluxsmith(self, *words: object) -> list[str]:
        """A command line of fluxsmith."""
        return [str(Path(sys.executable).with_name("fluxsmith")), *map(str, words)]

    def output(self, name: str) -> Path:
        """Where a program writes."""
        return self.work / f"out-{name}"

    def merge(self, name: str, formula: str, models: Mapping[str, Path], *, layout: str = "bfl") -> Program:
        """`fluxsmith merge FORMULA`; a diffusers output is a folder, others are one file."""
        out = self.output(name if layout == "diffusers" else f"{name}.safetensors")
        named = [word for key, path in models.items() for word in ("-m", f"{key}={path}")]
        words = ["merge", formula, *named, "-o", out, "--layout", layout, "--threads", self.cores, "--force", "--quiet"]
        return Program(name, self.fluxsmith(*words), list(models.values()), out)

    def copy(self, source: Path, name: str = "cp") -> Program:
        """`cp` of one input until its copy is on the disk."""
        out = self.output(f"{name}.safetensors")
        return Program(name, ["sh", "-c", 'cp "$0" "$1" && sync "$1"', str(source), str(out)], [source], out)

    # ---- measuring ----

    def verdict(self, reached: bool) -> bool | None:
        """Whether a ratio of times is reached; nothing is said of the tiny shape, where all time is start and noise."""
        return None if self.shape == "tiny" else reached

    def run(
        self, group: str, programs: Sequence[Program], rounds: int | None = None, *, keep: Sequence[str] = (), may_fail: bool = False
    ) -> dict[str, Runs]:
        """Run programs in turn and note their times for the table of all runs.

        Raises Failed where one of them fails, unless it may (a peer); then it is left out.
        """
        found = in_turn(programs, rounds or self.rounds, self.environment, keep)
        self.runs |= {f"{group}: {name}": runs for name, runs in found.items()}
        missing = [program.name for program in programs if program.name not in found]
        if missing and not may_fail:
            raise Failed(f"failed: {', '.join(missing)}")
        return found

    def remember(self, *paths: Path) -> None:
        """Have fluxsmith know the hashes of files, as it does of every file that it has merged before."""
        files = [f for path in paths for f in (sorted(path.glob("*.safetensors")) if path.is_dir() else [path])]
        self.python("benchmarks.remember", *files)

    def forget(self) -> None:
        """Have fluxsmith forget all hashes."""
        (self.work / "cache" / "fluxsmith" / "hashes.json").unlink(missing_ok=True)

    def start_of(self, make: Callable[[str, Path, Path], Program], name: str) -> float:
        """The time that a program takes to merge next to nothing: its start. `make(name, a, b)` is its command."""
        program = make(f"start {name}", self.file("a", "tiny"), self.file("b", "tiny"))
        return self.run("start", [program], self.start_rounds)[program.name].wall

    @cached_property
    def start(self) -> float:
        """The time that fluxsmith takes to start: interpreter, imports, and all that a merge does besides its tensors."""
        return self.start_of(self.linear, "fluxsmith")

    def linear(self, name: str, a: Path, b: Path) -> Program:
        """The linear merge of two inputs that most rows are about."""
        return self.merge(name, "weighted_sum(a, b, alpha=0.5)", {"a": a, "b": b})
