"""A sheet of samples for checkpoints, merges and adapters of the pocket world, side by side: same captions, same noise.

    from fluxsmith.generation.pocket_sheet import draw
    draw("sheet.png", {"base": "pocket/base", "styled": "styled.safetensors"}, skills=("plain", "framed"))

A model is a reference, an expression (`base + 0.8*style`), or a recipe; nothing is written to disk for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from fluxsmith.generation.pocket_eval import ALL_SKILLS, SkillScore, evaluate, guidance_of
from fluxsmith.models.transformer import load_transformer
from fluxsmith.pocket.sheet import Row, Section, save_sheet
from fluxsmith.recipes.expressions import Expression
from fluxsmith.recipes.recipe import Recipe

__all__ = ["SHOWN", "draw", "save_scores"]

SHOWN = 10  # images per row


def draw(
    path: str | os.PathLike[str],
    models: Mapping[str, Recipe | Expression | str],
    *,
    skills: Sequence[str] = ("plain",),
    count: int = 100,
    title: str = "",
) -> dict[str, dict[str, float]]:
    """Draw ten digits for each skill (`plain` or a style of the pocket world) and model into a PNG.

    Returns the accuracy of every model for every skill, over `count` images; it stands beside the rows, too.
    """
    asked = {skill: ALL_SKILLS[skill] for skill in skills}
    scores: dict[str, Mapping[str, SkillScore]] = {}
    for name, model in models.items():
        transformer = load_transformer(model, dtype="F32")
        scores[name] = evaluate(transformer, guidance_of(transformer), skills=asked, seeds=range(count))
    save_scores(Path(path), scores, title)
    return {name: {skill: found[skill].accuracy for skill in skills} for name, found in scores.items()}


def save_scores(path: Path, scores: Mapping[str, Mapping[str, SkillScore]], title: str) -> None:
    """The first images of every model and skill as a sheet, a section for each skill."""
    sections = [
        Section(
            f"“{skill}”" if skill != "plain" else "a digit, no style word",
            [Row(name, found[skill].images[:SHOWN], f"{found[skill].accuracy:.0%}") for name, found in scores.items()],
        )
        for skill in next(iter(scores.values()))
    ]
    columns = [str(digit) for digit in range(SHOWN)]
    save_sheet(path, sections, columns, title, "same seeds in every row; right: share drawn as asked")
