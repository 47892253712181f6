"""Sample a pocket checkpoint on all skills with fixed seeds and score it.

python -m fluxsmith.generation.pocket_eval               the table of the checkpoints that ship in the package
python -m fluxsmith.generation.pocket_eval --cards       the same, written into their cards too
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fluxsmith.generation.euler import sample
from fluxsmith.hub import pocket_folder
from fluxsmith.pocket.captions import caption, encode
from fluxsmith.pocket.card import write_card
from fluxsmith.pocket.checkpoints import CHECKPOINTS, load_checkpoint
from fluxsmith.pocket.digits import GRID, STYLES, Images, load_split, undo_styles, unpack
from fluxsmith.pocket.score import accuracy, frechet, frechet_floor, judge_accuracy

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

__all__ = ["ALL_SKILLS", "DEV_GUIDANCE", "SEEDS", "SKILLS", "SkillScore", "evaluate", "guidance_of", "score_table"]

SKILLS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "inverted": ("inverted",),
    "sideways": ("sideways",),
    "inverted sideways": ("inverted", "sideways"),
}
"""What the demo asks for: skill -> styles. No parent obeys both words of the last one."""

ALL_SKILLS: dict[str, tuple[str, ...]] = {"plain": (), **{style: (style,) for style in STYLES}}
"""Every skill of the pocket world. "slanted-left" and "slanted-right" are asked for with the same word."""

SEEDS = range(200)
STEPS = 10
DEV_GUIDANCE = 2.0
"""The guidance at which dev is scored; schnell is distilled at the same."""


@dataclass(frozen=True)
class SkillScore:
    """What a checkpoint drew for one skill.

    `images` [N, 8, 8] in [0, 1], image i for `captions[i]`. `accuracy` is the share with the right digit in the right style;
    `frechet` compares the images, styles undone, with the real training part.
    """

    captions: list[str]
    images: Images
    accuracy: float
    frechet: float


def guidance_of(transformer: FluxTransformer2DModel) -> float | None:
    """The guidance that a pocket transformer is told when it is scored: None where it embeds none."""
    return DEV_GUIDANCE if transformer.config["guidance_embeds"] else None


def evaluate(
    transformer: FluxTransformer2DModel,
    guidance: float | None = None,
    *,
    cfg: float = 1.0,
    skills: Mapping[str, Sequence[str]] = SKILLS,
    seeds: Sequence[int] = SEEDS,
    steps: int = STEPS,
) -> dict[str, SkillScore]:
    """Sample and score every skill of `skills`: image i shows digit i % 10 and starts from the noise of seeds[i].

    The same seeds give every checkpoint the same noise, so their images can be compared one by one. Skills that are asked for
    with the same words are judged on the same images.
    """
    digits = np.arange(len(seeds)) % 10
    negative = encode([""] * len(seeds)) if cfg != 1.0 else None
    drawn: dict[str, Images] = {}
    scores: dict[str, SkillScore] = {}
    for skill, styles in skills.items():
        captions = [caption(int(digit), styles) for digit in digits]
        asked = captions[0]
        if asked not in drawn:
            latents = sample(transformer, encode(captions), seeds, grid=GRID, steps=steps, guidance=guidance, cfg=cfg, negative=negative)
            drawn[asked] = unpack(latents)
        images = drawn[asked]
        distance = frechet(undo_styles(images, styles), load_split("train").images)
        scores[skill] = SkillScore(captions, images, accuracy(images, digits, styles), distance)
    return scores


def score_table(scores: Mapping[str, Mapping[str, SkillScore]]) -> str:
    """A Markdown table: one line for each checkpoint of `scores`, accuracy and Fréchet distance for each skill."""
    skills = list(next(iter(scores.values())))
    lines = ["| checkpoint | " + " | ".join(skills) + " |", "|---" * (len(skills) + 1) + "|"]
    for name, row in scores.items():
        cells = [f"{row[skill].accuracy:.1%} · {row[skill].frechet:.2f}" for skill in skills]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fluxsmith.generation.pocket_eval", description="Score the pocket checkpoints.")
    parser.add_argument("folder", nargs="?", type=Path, default=pocket_folder(), help="default: the folder inside the package")
    parser.add_argument("--cards", action="store_true", help="write the table into the cards")
    chosen = parser.parse_args(arguments)
    judges = judge_accuracy()
    print(f"accuracy · Fréchet distance, {len(SEEDS)} images for each skill, {STEPS} steps")
    print(
        f"judges on real test images: digit {judges.digit:.1%}, style {judges.style:.1%}; Fréchet floor {frechet_floor(len(SEEDS)):.2f}\n"
    )
    scores: dict[str, dict[str, SkillScore]] = {}
    for name in CHECKPOINTS:
        transformer = load_checkpoint(name, chosen.folder)
        scores[name] = evaluate(transformer, guidance_of(transformer), skills={**SKILLS, **ALL_SKILLS})
    table = score_table(scores)
    print(table)
    if chosen.cards:
        for name in CHECKPOINTS:
            write_card(name, chosen.folder / name, table)


if __name__ == "__main__":
    main()
