"""TIES of two models on a base: a method that has to know the median of every delta."""

import json
from dataclasses import replace

from benchmarks.bench import Bench, Row, Section
from benchmarks.measure import out_of, remove
from benchmarks.rows.linear import memory_row, ratio_row

__all__ = ["measure"]

DENSITY = 0.5
MEMORY = 1_200_000_000


def measure(bench: Bench) -> Section:
    """Time and memory beside `cp`, then some tensors of the output against numpy."""
    base, a, b = bench.file("base"), bench.file("a"), bench.file("b")
    merge = bench.merge("ties", f"ties(base, a, b, density={DENSITY})", {"base": base, "a": a, "b": b})
    merge = replace(merge, prepare=lambda: bench.remember(base, a, b))
    found = bench.run("ties", [bench.copy(a), merge], keep=["ties"])
    exact = json.loads(bench.python("benchmarks.exact", out_of(merge), DENSITY, base, a, b))
    remove(out_of(merge))
    checked = f"{exact['elements']:,} elements of {exact['tensors']} tensors"
    return Section(
        [
            ratio_row(bench, "TIES, density 0.5, two models on a base, wall / `cp`", found["ties"], found["cp"], 10),
            memory_row("TIES, peak RSS", found["ties"], MEMORY),
            Row("TIES, elements that differ from numpy's", "0", f"{exact['wrong']} of {checked}", exact["wrong"] == 0),
        ]
    )
