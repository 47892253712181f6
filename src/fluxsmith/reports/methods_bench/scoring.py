"""From a recipe to scores: merged in memory by the engine, sampled and judged."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fluxsmith.engine.execution import Settings
from fluxsmith.generation.pocket_eval import ALL_SKILLS, evaluate, guidance_of
from fluxsmith.models.transformer import load_transformer
from fluxsmith.recipes.expressions import Expression
from fluxsmith.recipes.recipe import Guidance, Recipe

__all__ = ["FINAL", "QUICK_FINAL", "QUICK_SEARCH", "SEARCH", "Scoring", "merged_recipe", "one_thread", "score", "standard_error"]


@dataclass(frozen=True)
class Scoring:
    """How a child is scored: `images` for each skill in `steps` Euler steps, from seeds that begin at `first_seed`."""

    images: int
    steps: int
    first_seed: int


FINAL = Scoring(200, 8, 10_000)
SEARCH = Scoring(60, 6, 20_000)
"""Settings are searched on other seeds than those that they are scored on."""

QUICK_FINAL, QUICK_SEARCH = Scoring(20, 4, 10_000), Scoring(10, 3, 20_000)
"""To see that everything runs; the numbers mean little."""


def merged_recipe(node: Expression) -> Recipe:
    """The recipe of a child: dev's guidance layers, which the others lack, are dropped; random methods have seed 0."""
    return Recipe(node, guidance=Guidance("drop"))


def score(wish: Recipe | str, skills: Sequence[str], scoring: Scoring) -> tuple[dict[str, float], float]:
    """Accuracy by skill, and the seconds of processor time that merging and scoring took."""
    begin = time.process_time()
    transformer = load_transformer(wish, dtype="F32", settings=Settings(threads=1))
    seeds = range(scoring.first_seed, scoring.first_seed + scoring.images)
    asked = {skill: ALL_SKILLS[skill] for skill in skills}
    with one_thread():
        scores = evaluate(transformer, guidance_of(transformer), skills=asked, seeds=seeds, steps=scoring.steps)
    return {skill: value.accuracy for skill, value in scores.items()}, time.process_time() - begin


@contextmanager
def one_thread() -> Generator[None]:
    """Sums in one order give the same scores on any machine's number of cores; tiny models gain nothing from more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def standard_error(accuracy: Mapping[str, float], images: int) -> float:
    """The standard error of the mean over skills: sqrt(sum p (1 - p) / n) / skills."""
    return math.sqrt(sum(p * (1 - p) for p in accuracy.values()) / images) / len(accuracy)
