"""`python -m benchmarks`: measure, print the tables, and write docs/benchmarks.md."""

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bench import Bench, Line, Row, Section
from benchmarks.machine import machine, versions
from benchmarks.measure import Failed
from benchmarks.rows import GROUPS
from benchmarks.shapes import SHAPES, count
from benchmarks.table import Report, document

PAGE = Path("docs/benchmarks.md")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure fluxsmith on this machine.")
    parser.add_argument("--quick", action="store_true", help="a tiny shape and one round: tests the benchmark, not the speed")
    parser.add_argument("--shape", choices=list(SHAPES), help="the shape of the ordinary rows (default mini: 3.18 B)")
    parser.add_argument("--rows", nargs="+", choices=list(GROUPS), default=list(GROUPS), help="only these groups of rows")
    parser.add_argument("--repeat", type=int, metavar="N", help="rounds of every comparison (default 3)")
    parser.add_argument("--cores", type=int, default=2, help="cores to use (default 2)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where inputs and outputs lie (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the work folder as it is, for the next run")
    parser.add_argument("--peers", type=Path, default=Path(".venv-bench"), metavar="VENV", help="environment of the other programs")
    parser.add_argument("--mergeflux", type=Path, metavar="PATH", help="a checkout of MergeFlux, which is no package")
    parser.add_argument("--page", type=Path, metavar="FILE", help=f"where to write (default: {PAGE}, if all rows are measured in full)")
    return parser.parse_args(argv)


def _bench(a: argparse.Namespace, work: Path) -> Bench:
    cores = min(a.cores, len(os.sched_getaffinity(0)))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])  # children inherit it
    shape = a.shape or ("tiny" if a.quick else "mini")
    full = "tiny" if a.quick else "full"
    rounds = a.repeat or (1 if a.quick else 3)
    return Bench(work, shape, full, rounds, cores, a.peers, a.mergeflux, a.keep, start_rounds=1 if a.quick else 5)


def _measure(a: argparse.Namespace, bench: Bench) -> Report:
    rows: list[Row] = []
    lines: list[Line] = []
    for name in a.rows:
        print(f"{name}:", flush=True)
        try:
            section = GROUPS[name](bench)
        except Failed as error:
            section = Section([Row(f"the rows of `{name}`", "", "not measured", False, str(error))])
        rows += section.rows
        lines += section.lines
    options = f" --shape {bench.shape}" if a.shape else " --quick" if a.quick else ""
    models = f"{bench.shape}, {count(bench.shape) / 1e9:.2f} B parameters; 12 B rows: {count(bench.full) / 1e9:.2f} B parameters"
    tiny = f"{count('tiny') / 1e6:.0f} million"
    described = machine(bench.cores, bench.work)
    return Report(f"python -m benchmarks{options}", described, versions(), models, tiny, rows, lines, bench.runs, a.quick)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is asked for, print it, and write the page where all of it was measured."""
    a = _arguments(argv)
    work = a.work or Path(tempfile.mkdtemp(prefix="fluxsmith-bench-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        page = document(_measure(a, _bench(a, work.resolve())))
    finally:
        if not a.keep:
            shutil.rmtree(work, ignore_errors=True)
    print(f"\n{page}")
    whole = list(a.rows) == list(GROUPS) and not a.quick and a.shape is None
    target = a.page or (PAGE if whole else None)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page)
        print(f"written: {target}")


if __name__ == "__main__":
    main()
