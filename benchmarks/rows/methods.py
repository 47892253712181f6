"""Merge methods beside the weighted sum, by the bytes that they move, and the measured ones beside `cp`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.bench import Bench, Row, Section
from benchmarks.measure import Runs
from benchmarks.rows.linear import memory_row, ratio_row

__all__ = ["MEASURED", "POINTWISE", "measure"]

MEMORY = 1_200_000_000
TIMES_CP = 15
PER_BYTE = 1.3


@dataclass(frozen=True)
class Formula:
    """A formula over `base`, `a` and `b`, and how many files it reads."""

    text: str
    inputs: Sequence[str]

    @property
    def moved(self) -> int:
        """Files read and written."""
        return len(self.inputs) + 1


_TWO, _THREE = ("a", "b"), ("base", "a", "b")

WEIGHTED_SUM = Formula("weighted_sum(a, b, alpha=0.3)", _TWO)

#: What every method is given is one tile of each input, once.
POINTWISE: Mapping[str, Formula] = {
    "add_difference": Formula("add_difference(a, b, base, alpha=0.5)", _THREE),
    "task_arithmetic": Formula("task_arithmetic(base, a, b)", _THREE),
    "add_difference with a mask": Formula("add_difference(a, b, base, alpha=train_difference_mask(a, b, base))", _THREE),
    "magmax": Formula("magmax(base, a, b)", _THREE),
    "consensus": Formula("consensus(base, a, b)", _THREE),
    "ram": Formula("ram(base, a, b)", _THREE),
    "nearswap": Formula("nearswap(a, b)", _TWO),
    "geometric_sum": Formula("geometric_sum(a, b)", _TWO),
    "clamp": Formula("clamp(base, a, b)", _THREE),
    "ema": Formula("ema(a, b)", _TWO),
}

#: What needs numbers of whole tensors or rows, or random ones.
MEASURED: Mapping[str, Formula] = {
    "ties": Formula("ties(base, a, b, density=0.5)", _THREE),
    "breadcrumbs": Formula("breadcrumbs(base, a, b, density=0.5, gamma=0.05)", _THREE),
    "della": Formula("della(base, a, b, density=0.5)", _THREE),
}


def measure(bench: Bench) -> Section:
    """Pointwise methods in turn with the weighted sum, then the measured ones in turn with `cp`."""
    rows = _pointwise(bench)
    found = _run(bench, MEASURED, bench.rounds, copied=True)
    for name in MEASURED:
        rows.append(ratio_row(bench, f"`{name}`, two models on a base, wall / `cp`", found[name], found["cp"], TIMES_CP))
        rows.append(memory_row(f"`{name}`, peak RSS", found[name], MEMORY))
    return Section(rows)


def _pointwise(bench: Bench) -> list[Row]:
    found = _run(bench, {"weighted_sum": WEIGHTED_SUM, **POINTWISE}, bench.rounds)
    return [_per_byte(bench, name, found[name], found["weighted_sum"]) for name in POINTWISE]


def _per_byte(bench: Bench, name: str, runs: Runs, floor: Runs) -> Row:
    """How long a method takes for a byte read or written, beside the weighted sum."""
    ratio = runs.ratio(floor, bench.start, bench.start) * WEIGHTED_SUM.moved / POINTWISE[name].moved
    measured = f"{ratio:.2f} ({runs.wall - bench.start:.2f} s)"
    return Row(f"`{name}`, per byte moved / `weighted_sum`", f"at most {PER_BYTE:g}", measured, bench.verdict(ratio <= PER_BYTE))


def _run(bench: Bench, formulas: Mapping[str, Formula], rounds: int, *, copied: bool = False) -> dict[str, Runs]:
    files = {name: bench.file(name) for name in _THREE}
    programs = [bench.copy(files["a"])] if copied else []
    for name, formula in formulas.items():
        merge = bench.merge(name, formula.text, {model: files[model] for model in formula.inputs})
        programs.append(replace(merge, prepare=lambda: bench.remember(*files.values())))
    return bench.run("methods", programs, rounds)
