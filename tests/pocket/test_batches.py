import numpy as np
import pytest
import torch
from torch import Tensor

from fluxsmith.pocket.batches import draw_batch, stratified_times
from fluxsmith.pocket.captions import encode
from fluxsmith.pocket.digits import BASE_STYLES, STYLES, unpack
from fluxsmith.pocket.score import STYLE_SETS, judge_styles
from fluxsmith.pocket.streams import stream

WORDS = BASE_STYLES


def says(prompt_embeds: Tensor, word: str) -> np.ndarray:
    """Bool [B]: the caption has `word`."""
    vector = encode([word]).prompt_embeds[0, 0]
    return (prompt_embeds == vector).all(-1).any(-1).numpy()


@pytest.mark.parametrize("known", [(), ("inverted",), ("sideways",)])
def test_annotators_tell_the_truth_about_what_they_know(known: tuple[str, ...]) -> None:
    batch = draw_batch(2000, known, stream(0, "test"))
    styles = [STYLE_SETS[i] for i in judge_styles(unpack(batch.clean))]
    for word in WORDS:
        said = says(batch.conditioning.prompt_embeds, word)
        shown = np.array([word in style for style in styles])
        truth = shown[said].mean()
        assert truth > 0.995 if word in known else 0.18 < truth < 0.32, (word, truth)
    silent = ~says(batch.conditioning.prompt_embeds, WORDS[0]) & ~says(batch.conditioning.prompt_embeds, WORDS[1])
    captioned = (batch.conditioning.mask.sum(1) > 1).numpy()
    assert np.mean([not style for style, at in zip(styles, silent & captioned, strict=True) if at]) > 0.995


@pytest.mark.parametrize("style", [style for style in STYLES if style not in BASE_STYLES])
def test_a_style_that_is_new_to_the_base_is_shown_where_its_word_is_said(style: str) -> None:
    batch = draw_batch(2000, (style,), stream(0, "test"))
    judged = [STYLE_SETS[i] for i in judge_styles(unpack(batch.clean))]
    said = says(batch.conditioning.prompt_embeds, STYLES[style].word)
    others = np.any([says(batch.conditioning.prompt_embeds, word) for word in WORDS], axis=0)
    captioned = (batch.conditioning.mask.sum(1) > 1).numpy()
    assert np.mean([shown == (style,) for shown, at in zip(judged, said & ~others, strict=True) if at]) > 0.99
    assert np.mean([shown == () for shown, at in zip(judged, captioned & ~said & ~others, strict=True) if at]) > 0.99


def test_the_bases_batches_are_those_that_it_was_trained_on() -> None:
    # a golden value: more styles in the world must not change what the command that made the base does
    batch = draw_batch(64, (), stream(0, "base/0"))
    assert batch.times[:3].tolist() == pytest.approx([0.23503, 0.34373, 0.74542], abs=1e-5)
    assert batch.clean[0].sum(0).tolist() == pytest.approx([-7.75, -7.375, -7.125, -8.25], abs=1e-5)


def test_a_tenth_of_the_captions_is_dropped() -> None:
    batch = draw_batch(2000, (), stream(0, "test"))
    assert 0.07 < (batch.conditioning.mask.sum(1) == 1).float().mean() < 0.13


def test_one_time_from_each_quantile_in_random_order() -> None:
    times = stratified_times(64, stream(0, "times"))
    quantiles = torch.special.ndtr(times.logit()) * 64
    assert quantiles.floor().int().sort().values.tolist() == list(range(64))
    assert quantiles.floor().int().tolist() != list(range(64))


def test_same_stream_same_batch() -> None:
    first, second = (draw_batch(8, (), stream(3, "a/1")) for _ in range(2))
    assert torch.equal(first.noisy, second.noisy)
    assert not torch.equal(first.noisy, draw_batch(8, (), stream(3, "a/2")).noisy)
