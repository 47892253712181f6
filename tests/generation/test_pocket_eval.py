"""The claims of the pocket cards, and that merging the two fine-tunes joins their skills."""

from functools import lru_cache

import numpy as np
import pytest

from fluxsmith.generation.pocket_eval import ALL_SKILLS, SKILLS, SkillScore, evaluate, guidance_of, score_table
from fluxsmith.models.transformer import load_transformer
from fluxsmith.pocket.architecture import copy_of
from fluxsmith.pocket.checkpoints import CHECKPOINTS, load_checkpoint
from fluxsmith.recipes.expressions import model

SEEDS = range(100)


@lru_cache
def scores(name: str) -> dict[str, SkillScore]:
    transformer = load_checkpoint(name)
    return evaluate(transformer, guidance_of(transformer), seeds=SEEDS)


@lru_cache
def new_scores(name: str) -> dict[str, SkillScore]:
    """Plain and the skills that are new to the base, quickly."""
    new = {skill: styles for skill, styles in ALL_SKILLS.items() if skill not in ("inverted", "sideways")}
    return evaluate(load_checkpoint(name), skills=new, seeds=range(60), steps=6)


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


@pytest.mark.parametrize("name", CHECKPOINTS[3:])
def test_each_new_fine_tune_has_the_skill_of_its_name_and_no_other(name: str) -> None:
    scores = {skill: score.accuracy for skill, score in new_scores(name).items()}
    assert scores.pop(name) > 0.90
    assert scores.pop("plain") > 0.80
    assert max(scores.values()) < 0.05
    assert new_scores("base")[name].accuracy < 0.05


def test_one_word_with_two_meanings_is_a_true_conflict() -> None:
    left, right = (f"slanted-{side}" for side in ("left", "right"))
    mean = load_transformer(model(f"pocket/{left}") * 0.5 + model(f"pocket/{right}") * 0.5, dtype="F32")
    child = evaluate(mean, skills={skill: (skill,) for skill in (left, right)}, seeds=range(60), steps=6)
    assert child[left].captions == child[right].captions
    for skill in (left, right):
        assert child[skill].accuracy < new_scores(skill)[skill].accuracy - 0.2


def test_skills_of_one_word_are_judged_on_the_same_images() -> None:
    scores = new_scores("slanted-left")
    assert scores["slanted-left"].images is scores["slanted-right"].images


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
