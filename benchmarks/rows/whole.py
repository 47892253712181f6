"""Methods on whole matrices: the peak that a plan counts beside the one that the kernel saw."""

from benchmarks.bench import Bench, Row, Section
from benchmarks.measure import Program

__all__ = ["FORMULAS", "measure"]

#: Three inputs each, as many as the plan of a usual merge has.
FORMULAS = {
    "tsv_merge": "tsv_merge(base, a, b)",
    "iso_c": "iso_c(base, a, b)",
    "iso_cts": "iso_cts(base, a, b)",
    "knots_ties": "knots_ties(base, a, b)",
    "wudi": "wudi(base, a, b, steps=10)",
    "rotate": "base + rotate(a, b, alignment=0.5) - a",
    "truncate_rank": "base + truncate_rank(a - b, rank=16)",
    "truncate_kronecker": "base + truncate_kronecker(a - b)",
    "subspace_boost": "base + subspace_boost(a - b)",
    "crossover": "base + crossover(a, b, tilt=0.3) - a",
    "top_k_tensor_sum": "base + top_k_tensor_sum(a, b, width=0.7) - a",
}
SIZE, SMALL = 3072, 256
WITHIN = 0.10


def measure(bench: Bench) -> Section:
    """One run of each: time is that of LAPACK, memory is ours."""
    size = SMALL if bench.shape == "tiny" else SIZE
    return Section([_row(bench, name, formula, size) for name, formula in FORMULAS.items()])


def _row(bench: Bench, name: str, formula: str, size: int) -> Row:
    folder = bench.work / "matrices"
    planned = int(bench.python("benchmarks.matrices", size, formula, folder))
    out = bench.output(f"{name}.safetensors")
    words = ("merge", folder / "recipe.yaml", "-o", out, "--threads", 1, "--force", "--quiet")
    inputs = [folder / f"{size}-{model}.safetensors" for model in ("base", "a", "b")]
    runs = bench.run("whole", [Program(name, bench.fluxsmith(*words), inputs, out)], 1)[name]
    off = planned / runs.peak - 1
    measured = f"planned {planned / 1e6:.0f} MB, measured {runs.peak / 1e6:.0f} MB ({off:+.0%}), {runs.wall:.0f} s"
    reached = None if size == SMALL else abs(off) <= WITHIN
    return Row(f"`{name}`, three {size} x {size} fp32 inputs, planned peak / measured", f"within {WITHIN:.0%}", measured, reached)
