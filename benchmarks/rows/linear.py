"""The linear merge of two models: as fast as copying one of them, in memory that does not grow with their number."""

from dataclasses import replace

from benchmarks.bench import Bench, Row, Section
from benchmarks.measure import Runs

__all__ = ["MEMORY", "measure", "memory_row", "ratio_row"]

MEMORY = 400_000_000
_HASHING = "BLAKE3 of both inputs is computed beside the merge"


def ratio_row(bench: Bench, what: str, runs: Runs, floor: Runs, limit: float | None, note: str = "") -> Row:
    """A row "so many times `cp`"; without a limit it is for information."""
    ratio = runs.ratio(floor, bench.start)
    took = f"{ratio:.2f} ({runs.wall - bench.start:.2f} s of {floor.wall:.2f} s)"
    hold = "" if limit is None else f"at most {limit:g}"
    return Row(what, hold, took, None if limit is None else bench.verdict(ratio <= limit), note)


def memory_row(what: str, runs: Runs, limit: int) -> Row:
    """A row for the peak of the resident set."""
    held = f"at most {limit // 10**6} MB" if limit < 10**9 else f"at most {limit / 1e9:.1f} GB"
    return Row(what, held, f"{runs.peak / 1e6:.0f} MB", runs.peak <= limit)


def measure(bench: Bench) -> Section:
    """Two inputs beside `cp`, with and without known hashes; then eight and twelve."""
    a, b = bench.file("a"), bench.file("b")
    start = bench.start  # measured first
    known = bench.linear("linear", a, b)
    known = replace(known, prepare=lambda: bench.remember(a, b))
    unknown = replace(bench.linear("linear, hashing", a, b), prepare=bench.forget)
    found = bench.run("linear", [bench.copy(a), known, unknown])
    floor = found["cp"]
    return Section(
        [
            Row("start of fluxsmith, taken off below", "", f"{start:.2f} s"),
            Row("`cp` of one input, to the disk", "", f"{floor.wall:.2f} s"),
            ratio_row(bench, "linear merge, wall / `cp`", found["linear"], floor, 1.3),
            ratio_row(bench, "the same with inputs never seen before", found["linear, hashing"], floor, None, _HASHING),
            memory_row("linear merge, peak RSS, 2 inputs", found["linear"], MEMORY),
            _many(bench, 8),
            _many(bench, 12),
        ]
    )


def _many(bench: Bench, count: int) -> Row:
    """Many inputs: two files under several names each."""
    files = [bench.file("a"), bench.file("b")]
    bench.remember(*files)
    links = bench.links(files, count)
    names = [f"m{i}" for i in range(len(links))]
    program = bench.merge(f"linear of {count}", f"linear({', '.join(names)})", dict(zip(names, links, strict=True)))
    found = bench.run("linear", [program], 1)
    for link in links:
        link.unlink()
    return memory_row(f"linear merge, peak RSS, {count} inputs", found[program.name], MEMORY)
