"""12 B checkpoints: the memory must be that of a 3 B merge. The inputs are sparse, the output is written in full."""

import shutil

from benchmarks.bench import Bench, Row, Section
from benchmarks.rows.linear import MEMORY, memory_row
from benchmarks.shapes import count

__all__ = ["measure"]


def measure(bench: Bench) -> Section:
    """Linear merges of two and of eight 12 B files, each once."""
    bench.release()
    size = 2 * count(bench.full)
    if shutil.disk_usage(bench.work).free < 1.05 * size:
        return Section([Row("linear merge, peak RSS, 12 B", "at most 400 MB", "not measured", None, f"needs {size / 1e9:.0f} GB of disk")])
    files = [bench.sparse(name) for name in "ab"]
    rows: list[Row] = []
    for number in (2, 8):
        links = bench.links(files, number)
        names = [f"m{i}" for i in range(number)]
        formula = f"linear({', '.join(names)})"
        program = bench.merge(f"linear of {number}, 12 B", formula, dict(zip(names, links, strict=True)))
        found = bench.run("full size", [program], 1)
        rows.append(memory_row(f"linear merge, peak RSS, {number} inputs of 12 B", found[program.name], MEMORY))
        for link in links:
            link.unlink()
    return Section(rows)
