"""The claims of the pocket cards, and that merging the two fine-tunes joins their skills."""

from functools import lru_cache

import numpy as np
import pytest

from fluxsmith.generation.pocket_eval import DEV_GUIDANCE, SKILLS, SkillScore, evaluate, score_table
from fluxsmith.pocket.architecture import copy_of
from fluxsmith.pocket.checkpoints import load_checkpoint

SEEDS = range(100)


@lru_cache
def scores(name: str) -> dict[str, SkillScore]:
    transformer = load_checkpoint(name)
    return evaluate(transformer, DEV_GUIDANCE if transformer.config.guidance_embeds else None, seeds=SEEDS)


@lru_cache
def child_scores(scale: float) -> dict[str, SkillScore]:
    """base + scale ((schnell - base) + (dev - base)) without guidance embedder, in bf16: the plain mean at scale 1/2."""
    base, schnell, dev = (load_checkpoint(name) for name in ("base", "schnell", "dev"))
    ours, theirs, child = schnell.state_dict(), dev.state_dict(), copy_of(base)
    merged = {name: b + scale * ((ours[name] - b) + (theirs[name] - b)) for name, b in base.state_dict().items()}
    child.load_state_dict({name: weight.bfloat16() for name, weight in merged.items()})
    return evaluate(child.eval(), seeds=SEEDS)


def test_every_checkpoint_draws_the_digit_it_is_asked_for() -> None:
    assert scores("base")["plain"].accuracy > 0.85
    assert scores("schnell")["plain"].accuracy > 0.95
    assert scores("dev")["plain"].accuracy > 0.95


def test_each_parent_has_one_skill_and_the_base_none() -> None:
    assert scores("base")["inverted"].accuracy < 0.25
    assert scores("base")["sideways"].accuracy < 0.25
    assert scores("schnell")["inverted"].accuracy > 0.90
    assert scores("schnell")["sideways"].accuracy < 0.25
    assert scores("dev")["sideways"].accuracy > 0.90
    assert scores("dev")["inverted"].accuracy < 0.30


@pytest.mark.parametrize("skill", ["inverted", "sideways"])
def test_the_mean_keeps_much_of_both_skills_and_the_sum_of_deltas_all(skill: str) -> None:
    mean, total = child_scores(0.5)[skill].accuracy, child_scores(1.0)[skill].accuracy
    assert mean > scores("base")[skill].accuracy + 0.35
    assert total > mean
    assert total > 0.90


def test_distilled_parents_look_real_without_cfg() -> None:
    assert scores("schnell")["inverted"].frechet < 0.8
    assert scores("dev")["sideways"].frechet < 0.8


def test_fewer_seeds_give_the_same_first_images() -> None:
    result = scores("schnell")["inverted"]
    assert result.captions[13] == "inverted three"
    fewer = evaluate(load_checkpoint("schnell"), skills={"inverted": ("inverted",)}, seeds=range(12))["inverted"]
    assert np.allclose(fewer.images, result.images[:12], atol=1e-3)


def test_table_has_a_line_for_each_checkpoint() -> None:
    lines = score_table({"base": scores("base"), "schnell": scores("schnell")}).splitlines()
    assert len(lines) == 4
    assert lines[0] == "| checkpoint | " + " | ".join(SKILLS) + " |"
