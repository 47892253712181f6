"""The program itself: how soon it answers where no tensor is read."""

import sys

from benchmarks.bench import Bench, Row, Section
from benchmarks.measure import Program, run

__all__ = ["measure"]

ROUNDS = 5
PLAN, PLAN_12, HELP = 2.0, 3.0, 0.3

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
    """`plan` of two and of twelve 12 B checkpoints, and `--help`; start included."""
    a, b = bench.sparse("a"), bench.sparse("b")
    links = bench.links([a, b], 12)
    named = [word for i, link in enumerate(links) for word in ("-m", f"m{i}={link}")]
    many = ("plan", f"linear({', '.join(f'm{i}' for i in range(12))})", *named, "-o", bench.output("plan.safetensors"))
    words = ("plan", "weighted_sum(a, b, alpha=0.5)", "-m", f"a={a}", "-m", f"b={b}", "-o", bench.output("plan.safetensors"))
    commands = {"plan": bench.fluxsmith(*words), "plan of 12": bench.fluxsmith(*many), "--help": bench.fluxsmith("--help")}
    found = bench.run("program", [Program(name, command) for name, command in commands.items()], ROUNDS)
    for link in links:
        link.unlink()
    said = run(Program("imports", [sys.executable, "-c", _IMPORTS]), bench.environment).said
    without_torch = "torch imported: False" in said
    plan, twelve, helped = found["plan"], found["plan of 12"], found["--help"]
    return Section(
        [
            Row("`plan` of two 12 B checkpoints (sparse files)", f"under {PLAN:g} s", f"{plan.wall:.2f} s", plan.wall < PLAN),
            Row("`plan` of twelve of them", f"under {PLAN_12:g} s", f"{twelve.wall:.2f} s", twelve.wall < PLAN_12),
            Row(
                "`fluxsmith --help`", f"under {HELP:g} s, torch not imported",
                f"{helped.wall:.2f} s, torch {'not ' * without_torch}imported", helped.wall < HELP and without_torch,
            ),
        ]
    )  # fmt: skip
