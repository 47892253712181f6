"""The program itself: how soon it answers where no tensor is read."""

import sys

from benchmarks.bench import Bench, Row, Section
from benchmarks.measure import Program, run

__all__ = ["measure"]

ROUNDS = 5
PLAN, HELP = 2.0, 0.3

_IMPORTS = """
import sys
from fluxsmith.cli.main import main
try:
    main(["--help"])
except SystemExit:
    pass
print("torch imported:", "torch" in sys.modules)
"""


def measure(bench: Bench) -> Section:
    """`plan` of two 12 B checkpoints, and `--help`; start included."""
    a, b = bench.sparse("a"), bench.sparse("b")
    words = ("plan", "weighted_sum(a, b, alpha=0.5)", "-m", f"a={a}", "-m", f"b={b}", "-o", bench.output("plan.safetensors"))
    programs = [Program("plan", bench.fluxsmith(*words)), Program("--help", bench.fluxsmith("--help"))]
    found = bench.run("program", programs, ROUNDS)
    said = run(Program("imports", [sys.executable, "-c", _IMPORTS]), bench.environment).said
    without_torch = "torch imported: False" in said
    plan, helped = found["plan"], found["--help"]
    return Section(
        [
            Row("`plan` of two 12 B checkpoints (sparse files)", f"under {PLAN:g} s", f"{plan.wall:.2f} s", plan.wall < PLAN),
            Row(
                "`fluxsmith --help`", f"under {HELP:g} s, torch not imported",
                f"{helped.wall:.2f} s, torch {'not ' * without_torch}imported", helped.wall < HELP and without_torch,
            ),
        ]
    )  # fmt: skip
