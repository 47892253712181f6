"""The other programs, in an environment of their own: the same merge with each one's own means.

sd-mecha and mergekit come from PyPI (constraints/bench.txt); MergeFlux is no package, so its row needs a checkout.
"""

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.measure import Program

__all__ = ["Peer", "find_peers", "version_of"]

LIMIT = 900.0  # seconds after which a program is stopped

_SD_MECHA = """
import sys, torch, sd_mecha
a, b, out, threads = sys.argv[1:]
recipe = sd_mecha.weighted_sum(sd_mecha.model(a), sd_mecha.model(b), alpha=0.5)
sd_mecha.merge(recipe, output=out, merge_dtype=torch.float32, output_dtype=torch.bfloat16, threads=int(threads))
"""

_MERGEKIT = """merge_method: linear
models:
  - {{model: {a}, parameters: {{weight: 0.5}}}}
  - {{model: {b}, parameters: {{weight: 0.5}}}}
dtype: float32
out_dtype: bfloat16
"""


@dataclass(frozen=True)
class Peer:
    """One program: its name with version, the factor that we hold against it, and how it merges two files."""

    name: str
    title: str
    hold: float
    program: Callable[[str, Path, Path], Program]


def find_peers(bench: Bench) -> tuple[list[Peer], list[str]]:
    """The peers that can be run, and for each that cannot a sentence why."""
    found: list[Peer] = []
    absent: list[str] = []
    for package, hold, program in (("mergekit", 5.0, _mergekit), ("sd-mecha", 10.0, _sd_mecha)):
        version = version_of(bench.peers, package)
        if version is None:
            absent.append(f"{package} is not in {bench.peers.name} (make bench puts it there)")
        else:
            found.append(Peer(package, f"{package} {version}", hold, _bound(program, bench)))
    script = bench.mergeflux and bench.mergeflux / "mergeflux.py"
    if script and script.is_file() and _python(bench).is_file():
        title = f"MergeFlux {_commit(script.parent)}".strip()
        found.append(Peer("MergeFlux", title, 5.0, _bound(_mergeflux, bench)))
    else:
        absent.append("MergeFlux is no package: --mergeflux PATH names a checkout")
    return found, absent


def version_of(venv: Path, package: str) -> str | None:
    """The version of a package in an environment, None where it is not there."""
    python = venv / "bin" / "python"
    if not python.is_file():
        return None
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _bound(program: Callable[[Bench, str, Path, Path], Program], bench: Bench) -> Callable[[str, Path, Path], Program]:
    return lambda name, a, b: program(bench, name, a, b)


def _python(bench: Bench) -> Path:
    return bench.peers / "bin" / "python"


def _program(bench: Bench, name: str, command: Sequence[object], reads: Sequence[Path], out: Path) -> Program:
    return Program(name, [str(word) for word in command], reads, out, LIMIT)


def _sd_mecha(bench: Bench, name: str, a: Path, b: Path) -> Program:
    out = bench.output(f"{name}.safetensors")
    return _program(bench, name, [_python(bench).absolute(), "-c", _SD_MECHA, a, b, out, bench.cores], [a, b], out)


def _mergekit(bench: Bench, name: str, a: Path, b: Path) -> Program:
    out = bench.output(name)
    config = bench.work / f"{name}.yaml"
    config.write_text(_MERGEKIT.format(a=a, b=b))
    return _program(bench, name, [_python(bench).absolute().with_name("mergekit-pytorch"), config, out], [a, b], out)


def _mergeflux(bench: Bench, name: str, a: Path, b: Path) -> Program:
    out = bench.output(f"{name}.safetensors")
    script = (bench.mergeflux or Path()) / "mergeflux.py"
    words = [_python(bench).absolute(), script.absolute(), "--models", a, b, "--output", out, "--device", "cpu"]
    return _program(bench, name, words, [a, b], out)


def _commit(checkout: Path) -> str:
    done = subprocess.run(["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""
