"""The demo: two tiny FLUX checkpoints merged, sampled before and after with the same seeds, scored and shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fluxsmith.engine.execution import Settings
from fluxsmith.engine.merging import merge
from fluxsmith.generation.pocket_eval import STEPS, SkillScore, evaluate, guidance_of
from fluxsmith.generation.pocket_sheet import save_scores
from fluxsmith.models.transformer import load_transformer
from fluxsmith.pocket.score import judge_accuracy
from fluxsmith.recipes.expressions import Expression, model
from fluxsmith.recipes.formula import parse_formula
from fluxsmith.recipes.loading import load_preset
from fluxsmith.recipes.recipe import Guidance, Recipe
from fluxsmith.reports.card import card_files
from fluxsmith.reports.demo_page import demo_page

__all__ = ["Demo", "run_demo"]

POCKET = {name: f"pocket/{name}" for name in ("base", "schnell", "dev")}
TASK = "task_arithmetic(base, schnell, dev)"


@dataclass(frozen=True)
class Demo:
    """What the demo made: scores by model and skill, the sheet and the page."""

    scores: Mapping[str, Mapping[str, SkillScore]]
    sheet: Path
    page: Path
    merged: Path
    seconds: float


def run_demo(output: Path, say: Callable[[str], None]) -> Demo:
    """Merge pocket/schnell and pocket/dev into `output`, sample parents and children, and write sheet.png and index.html."""
    begin = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    average = load_preset("flux-krea-schnell", {"schnell": POCKET["schnell"], "krea": POCKET["dev"]})
    nodes: dict[str, Expression] = {name: model(reference, name=name) for name, reference in POCKET.items()}
    arithmetic = Recipe(parse_formula(TASK, nodes), guidance=Guidance("drop"), title="what both learned, added to their base")
    merged = output / "merged" / "transformer"
    merged.parent.mkdir(exist_ok=True)
    merge(average, merged, settings=Settings(), force=True, beside=card_files)
    say(f"merged  pocket/schnell and pocket/dev -> {merged}")
    wishes: dict[str, Recipe | Expression | str] = {
        "base": POCKET["base"], "schnell": POCKET["schnell"], "dev": POCKET["dev"],
        "(schnell + dev) / 2": str(merged), "base + both deltas": arithmetic,
    }  # fmt: skip
    scores: dict[str, Mapping[str, SkillScore]] = {}
    for name, wish in wishes.items():
        transformer = load_transformer(wish, dtype="F32")
        scores[name] = evaluate(transformer, guidance_of(transformer))
        say(f"sampled {name}: " + ", ".join(f"{skill} {score.accuracy:.0%}" for skill, score in scores[name].items()))
    sheet, page = output / "sheet.png", output / "index.html"
    save_scores(sheet, scores, "Two tiny FLUX models and their merge")
    judges = judge_accuracy()
    page.write_text(demo_page(scores, {"digit": judges.digit, "style": judges.style}, sheet, TASK, STEPS))
    return Demo(scores, sheet, page, merged, time.monotonic() - begin)
