"""Mixed layouts: a map between layouts rearranges byte ranges, so it should cost nothing."""

import json

from benchmarks.bench import Bench, Row, Section
from benchmarks.measure import out_of, remove

__all__ = ["measure"]

LAYOUTS = ("bfl", "diffusers", "comfy")
LIMIT = 1.15


def measure(bench: Bench) -> Section:
    """BFL + diffusers into every layout, beside BFL + BFL into BFL; the tensors must be the same."""
    a, b, folder = bench.file("a"), bench.file("b"), bench.folder("b")
    bench.remember(a, b, folder)
    formula = "weighted_sum(a, b, alpha=0.5)"
    same = bench.merge("same layout", formula, {"a": a, "b": b})
    mixed = [bench.merge(f"mixed to {layout}", formula, {"a": a, "b": folder}, layout=layout) for layout in LAYOUTS]
    found = bench.run("layouts", [same, *mixed], keep=["same layout", "mixed to bfl"])
    rows: list[Row] = []
    for layout in LAYOUTS:
        runs = found[f"mixed to {layout}"]
        ratio = runs.ratio(found["same layout"], bench.start, bench.start)
        took = f"{ratio:.2f} ({runs.wall - bench.start:.2f} s)"
        rows.append(
            Row(f"BFL + diffusers inputs to {layout}, wall / same-layout merge", f"at most {LIMIT}", took, bench.verdict(ratio <= LIMIT))
        )
    equal = json.loads(bench.python("benchmarks.compare", out_of(same), out_of(mixed[0])))
    rows.append(Row("mixed to bfl, elements equal to the same-layout merge", "all", equal["text"], equal["text"] == "all"))
    remove(out_of(same))
    remove(out_of(mixed[0]))
    return Section(rows)
