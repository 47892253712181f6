"""Adapters: applying one, beside the linear merge of two models of the same size."""

from pathlib import Path

from benchmarks.adapters import KINDS, RANK
from benchmarks.bench import Bench, Row, Section
from benchmarks.measure import Program
from benchmarks.rows.linear import memory_row

__all__ = ["measure"]

LIMIT = 1.6
MEMORY = 600_000_000
_WHAT = {
    "lora": f"apply of a rank-{RANK} LoRA (kohya)",
    "peft": f"apply of a rank-{RANK} LoRA (diffusers' split names)",
    "lokr": "apply of a LoKr",
}


def measure(bench: Bench) -> Section:
    """Every kind of adapter in turn with the linear merge."""
    a, b = bench.file("a"), bench.file("b")
    bench.remember(a, b)
    files = {kind: _adapter(bench, kind) for kind in KINDS}
    programs = [bench.linear("linear", a, b), *(_apply(bench, kind, a, file) for kind, file in files.items())]
    found = bench.run("adapters", programs)
    linear = found["linear"]
    rows: list[Row] = []
    for kind in KINDS:
        runs = found[f"apply {kind}"]
        ratio = runs.ratio(linear, 0.0)
        took = f"{ratio:.2f} ({runs.wall:.2f} s of {linear.wall:.2f} s)"
        rows.append(Row(f"{_WHAT[kind]}, wall / linear merge", f"at most {LIMIT}", took, bench.verdict(ratio <= LIMIT)))
        rows.append(memory_row(f"{_WHAT[kind]}, peak RSS", runs, MEMORY))
    return Section(rows)


def _adapter(bench: Bench, kind: str) -> Path:
    path = bench.work / f"{bench.shape}-{kind}.safetensors"
    if not path.exists():
        bench.python("benchmarks.adapters", bench.shape, kind, path)
    return path


def _apply(bench: Bench, kind: str, base: Path, adapter: Path) -> Program:
    out = bench.output(f"apply-{kind}.safetensors")
    words = ["apply", adapter, "-b", base, "-o", out, "--threads", bench.cores, "--force", "--quiet"]
    return Program(f"apply {kind}", bench.fluxsmith(*words), [base], out)
