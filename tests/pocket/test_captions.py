import pytest
import torch

from fluxsmith.errors import UsageError
from fluxsmith.pocket.captions import TOKENS, caption, encode


def test_shapes_and_mask() -> None:
    embeds, pooled, mask = encode(["", "seven", "a picture of inverted sideways seven"])
    assert embeds.shape == (3, TOKENS, 32)
    assert pooled.shape == (3, 32)
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [1, 2, 7]  # the words and an end token


def test_same_words_same_numbers_whatever_the_global_generator() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = encode(["inverted seven"])
    assert torch.equal(torch.get_rng_state(), state)
    # a golden value: the committed weights know these vectors, so they must never change
    assert first.prompt_embeds[0, 1, :3].tolist() == pytest.approx([0.16531, 1.65375, 0.61484], abs=1e-5)


def test_pooled_is_about_unit_variance() -> None:
    for text in ("", "seven", "the digit inverted sideways seven"):
        assert 0.5 < encode([text]).pooled.std() < 1.5


def test_grammar() -> None:
    assert caption(7) == "seven"
    assert caption(0, ("inverted",), "a picture of") == "a picture of inverted zero"
    assert caption(2, ("slanted-left",)) == caption(2, ("slanted-right",)) == "slanted two"


def test_unknown_word_is_refused_with_a_way_out() -> None:
    with pytest.raises(UsageError, match="inverterd") as caught:
        encode(["inverterd seven"])
    assert caught.value.fix == "did you mean `inverted`?"


def test_too_many_words_are_refused() -> None:
    with pytest.raises(UsageError, match="at most 7"):
        encode(["a picture of the digit inverted sideways seven"])
