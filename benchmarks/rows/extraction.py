"""Extraction: one large matrix of several spectra, and a whole model."""

import json

from benchmarks.bench import Bench, Row, Section
from benchmarks.measure import Program

__all__ = ["measure"]

RANK = 32
SIDE = {"tiny": 256}
SECONDS, RATIO = 2.0, 1.01


def measure(bench: Bench) -> Section:
    """Seconds and residual of rank 32 for one matrix; time and memory of a whole extraction."""
    side = SIDE.get(bench.shape, 3072)
    found: list[tuple[str, float, float]] = [
        tuple(json.loads(line)) for line in bench.python("benchmarks.low_rank", side, RANK).splitlines()
    ]
    rows: list[Row] = []
    for name, seconds, ratio in found:
        what = f"rank {RANK} of {side} x {side}, singular values {name}"
        rows.append(Row(f"{what}: time", f"at most {SECONDS:g} s", f"{seconds:.2f} s", bench.verdict(seconds <= SECONDS)))
        rows.append(Row(f"{what}: residual / optimum", f"at most {RATIO:g}", f"{ratio:.4f}", ratio <= RATIO))
    return Section([*rows, *_whole(bench)])


def _whole(bench: Bench) -> list[Row]:
    """All matrices of a model whose delta is noise, which no rank holds: the slowest case."""
    a, b = bench.file("a"), bench.file("b")
    out = bench.output("extracted.safetensors")
    words = ["extract", a, b, "-o", out, "--rank", RANK, "--threads", bench.cores, "--force", "--quiet"]
    runs = bench.run("extraction", [Program("whole", bench.fluxsmith(*words), [a, b], out)], 1)["whole"]
    return [
        Row(f"extraction of a whole model, rank {RANK}, a delta of noise", "", f"{runs.wall:.0f} s"),
        Row("its peak RSS", "", f"{runs.peak / 1e6:.0f} MB"),
    ]
