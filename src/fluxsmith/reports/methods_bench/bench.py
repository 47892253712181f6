"""The run behind the methods table: every child is merged in memory, sampled, scored and noted."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fluxsmith.errors import FluxsmithError, RecipeError, UsageError, did_you_mean
from fluxsmith.hub import pocket_folder
from fluxsmith.io.hashing import content_hash
from fluxsmith.methods import METHODS, Method
from fluxsmith.pocket.checkpoints import CHECKPOINTS, LEARNED
from fluxsmith.reports.methods_bench.calls import call_of, express, measured_methods, why_not
from fluxsmith.reports.methods_bench.family import pocket_family
from fluxsmith.reports.methods_bench.records import Record, Records, key_of
from fluxsmith.reports.methods_bench.scoring import FINAL, QUICK_FINAL, QUICK_SEARCH, SEARCH, Scoring, merged_recipe, score
from fluxsmith.reports.methods_bench.settings import MOST_TRIALS, search

__all__ = ["BASE", "TUNED", "Bench", "Row", "run_bench"]

BASE = "base"
TUNED = ("schnell", "framed", "faint", "slanted-left", "slanted-right")
"""What is merged unless others are named: three skills that agree, and two models that mean different things by one word."""

AVERAGE = "linear"
Kind = Literal["reference", "default", "best", "default and best"]


@dataclass(frozen=True)
class Row:
    """One row of the table: a model as it is, or what a method makes at its default or best setting."""

    name: str
    kind: Kind
    record: Record


@dataclass
class Bench:
    """All results: `references` (base, parents, their average), `rows` of methods; what did not apply, and what failed.

    Rows are scored as `scoring` says, settings searched as `searched` says, with at most `trials` for a method.
    `seconds` is the processor time of merging and scoring, in earlier runs too.
    """

    tuned: Sequence[str]
    skills: Sequence[str]
    scoring: Scoring
    searched: Scoring = SEARCH
    trials: int = MOST_TRIALS
    references: list[Row] = field(default_factory=list[Row])
    rows: list[Row] = field(default_factory=list[Row])
    skipped: dict[str, str] = field(default_factory=dict[str, str])
    failed: dict[str, str] = field(default_factory=dict[str, str])
    seconds: float = 0.0


def run_bench(
    records: Path,
    say: Callable[[str], None],
    *,
    methods: Sequence[str] = (),
    tuned: Sequence[str] = TUNED,
    quick: bool = False,
) -> Bench:
    """Score the base, the fine-tunes `tuned`, and what every method (or those named) makes of them.

    Scores go to the JSON lines file `records` and are taken from there where nothing that decides them has changed.
    Raises UsageError for an unknown method or checkpoint, RecipeError for a method that was named but does not apply.
    """
    _check_names(tuned, list(LEARNED), "fine-tune of the pocket base", "fluxsmith bench methods --help")
    _check_names(methods, list(measured_methods()), "merge method", "fluxsmith list methods")
    chosen = _applicable(methods)
    skills = ["plain", *(LEARNED[name] for name in tuned)]
    bench = Bench(tuned, skills, QUICK_FINAL, QUICK_SEARCH, trials=2) if quick else Bench(tuned, skills, FINAL)
    maker = _Maker(Records(records), bench)
    for name in (BASE, *tuned):
        bench.references.append(Row(name, "reference", maker.parent(name)))
        say(f"{name}  {_means(bench.references[-1:])}")
    average = maker.child(METHODS[AVERAGE], {}, bench.scoring)
    bench.references.append(Row("average of all", "reference", average))
    bench.skipped = {} if methods else {name: reason for name, method in METHODS.items() if (reason := why_not(method))}
    for count, method in enumerate(chosen, start=1):
        rows = _try(maker, method)
        if rows:
            bench.rows += rows
        else:
            bench.failed[method.name] = maker.child(method, {}, bench.scoring).error
        say(f"{count}/{len(chosen)} {method.name}  {_means(rows) or bench.failed[method.name]}")
    return bench


def _applicable(names: Sequence[str]) -> list[Method]:
    """The methods of these names, or all that apply; raises RecipeError where a named one does not."""
    if not names:
        return [method for method in measured_methods().values() if why_not(method) is None]
    known = measured_methods()
    for name in names:
        reason = why_not(known[name])
        if reason is not None:
            raise RecipeError("bench.method-does-not-apply", f"{name} {reason}", fix="fluxsmith list methods")
    return [known[name] for name in names]


def _try(maker: _Maker, method: Method) -> list[Row]:
    """The rows of a method: its default and its best setting; none where its default does not run."""
    default = maker.child(method, {}, maker.bench.scoring)
    if default.error:
        return []
    options = search(method, maker.mean_of(method), maker.bench.trials)
    if not options:
        return [Row(method.name, "default and best", default)]
    best = maker.child(method, options, maker.bench.scoring)
    if best.error:
        return [Row(method.name, "default", default)]
    return [Row(method.name, "default", default), Row(method.name, "best", best)]


class _Maker:
    """Makes and scores models, each once."""

    def __init__(self, records: Records, bench: Bench) -> None:
        self.bench = bench
        self._records, self._used = records, set[str]()
        self._family = pocket_family(BASE, bench.tuned)
        files = {name: pocket_folder() / name / "transformer" / "diffusion_pytorch_model.safetensors" for name in CHECKPOINTS}
        self._hashes = {name: content_hash(str(path)) for name, path in files.items()}

    def parent(self, name: str) -> Record:
        """The score of a checkpoint as it is."""
        return self._score(name, {}, [self._hashes[name]], lambda: f"pocket/{name}", self.bench.scoring)

    def child(self, method: Method, options: Mapping[str, Any], scoring: Scoring) -> Record:
        """The score of what a method makes of the family."""
        code = [inspect.getsource(sys.modules[method.function.__module__]), inspect.getsource(call_of(method))]
        facts = [[self._hashes[name] for name in (BASE, *self.bench.tuned)], code]
        return self._score(method.name, options, facts, lambda: merged_recipe(express(method, self._family, options)), scoring)

    def mean_of(self, method: Method) -> Callable[[Mapping[str, Any]], float | None]:
        """What the search asks: the mean over skills on the seeds of the search."""

        def mean(options: Mapping[str, Any]) -> float | None:
            record = self.child(method, options, self.bench.searched)
            return None if record.error else record.mean

        return mean

    def _score(self, name: str, options: Mapping[str, Any], facts: Sequence[object], wish: Callable[[], Any], scoring: Scoring) -> Record:
        key = key_of(name, options, facts, self.bench.skills, vars(scoring))
        record = self._records.find(key) or self._records.add(self._measure(key, name, options, wish, scoring))
        if key not in self._used:
            self._used.add(key)
            self.bench.seconds += record.seconds
        return record

    def _measure(self, key: str, name: str, options: Mapping[str, Any], wish: Callable[[], Any], scoring: Scoring) -> Record:
        try:
            accuracy, seconds = score(wish(), self.bench.skills, scoring)
        except FluxsmithError as error:
            return Record(key, name, options, {}, scoring.images, 0.0, error.message)
        return Record(key, name, options, accuracy, scoring.images, round(seconds, 2))


def _check_names(given: Sequence[str], known: list[str], what: str, fix: str) -> None:
    for name in given:
        if name not in known:
            raise UsageError("bench.unknown-name", f"`{name}` is no {what}", hint=did_you_mean(name, known), fix=fix)


def _means(rows: Sequence[Row]) -> str:
    return ", ".join(f"{row.kind} {row.record.mean:.1%}" for row in rows)
