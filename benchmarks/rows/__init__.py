"""What is measured, one file per group of rows; the order here is the order of the run and of the table.

linear.py     the linear merge: time, memory, hashing
peers.py      the same merge by sd-mecha, mergekit and MergeFlux
mecha.py      a recipe of sd-mecha, run by both
ties.py       TIES: time, memory, thresholds
methods.py    merge methods by the bytes that they move; DELLA and breadcrumbs beside `cp`
whole.py      methods on whole matrices: planned and measured memory
adapters.py   applying adapters, beside the linear merge
extraction.py a matrix and a whole model as a LoRA
layouts.py    inputs of two layouts, outputs of every layout
program.py    the program itself: `plan` and `--help`
full_size.py  12 B: memory (last, as its outputs need the room of all other inputs)
"""

from collections.abc import Callable, Mapping

from benchmarks.bench import Bench, Section
from benchmarks.rows import adapters, extraction, full_size, layouts, linear, mecha, methods, peers, program, ties, whole

__all__ = ["GROUPS"]

GROUPS: Mapping[str, Callable[[Bench], Section]] = {
    "linear": linear.measure,
    "peers": peers.measure,
    "mecha": mecha.measure,
    "ties": ties.measure,
    "methods": methods.measure,
    "whole": whole.measure,
    "adapters": adapters.measure,
    "extraction": extraction.measure,
    "layouts": layouts.measure,
    "program": program.measure,
    "full": full_size.measure,
}
