import numpy as np
import pytest
import torch

from fluxsmith.pocket.digits import BASE_STYLES, STYLES, WORDS, apply_styles, load_split, pack, undo_styles, unpack


def test_split_is_a_partition_of_real_digits() -> None:
    train, test = load_split("train"), load_split("test")
    assert (len(train.images), len(test.images)) == (1437, 360)
    assert train.images.dtype == np.float32
    assert (train.images.min(), train.images.max()) == (0.0, 1.0)
    # the data has no two equal images, so a shared one would be a leak
    assert len(np.unique(np.concatenate([train.images, test.images]).reshape(1797, -1), axis=0)) == 1797
    assert np.bincount(test.labels).min() >= 25


def test_packing_puts_patches_in_flux_order() -> None:
    image = np.arange(64, dtype=np.float32).reshape(1, 8, 8) / 63
    tokens = (pack(image) + 1) / 2 * 63
    assert tokens[0, 0].round().tolist() == [0, 1, 8, 9]
    assert tokens[0, 1].round().tolist() == [2, 3, 10, 11]
    assert tokens[0, 4].round().tolist() == [16, 17, 24, 25]


def test_unpack_is_the_way_back_and_clips() -> None:
    images = load_split("test").images
    assert np.allclose(unpack(pack(images)), images, atol=1e-6)
    assert unpack(torch.full((1, 16, 4), 3.0)).max() == 1.0


@pytest.mark.parametrize("styles", [(), ("inverted", "sideways"), *((style,) for style in STYLES)])
def test_undo_is_the_way_back(styles: tuple[str, ...]) -> None:
    images = load_split("test").images
    styled = apply_styles(images, styles)
    assert np.allclose(undo_styles(styled, styles), images, atol=1e-6)
    assert (styled.min(), styled.max(), styled.dtype) == (0.0, 0.5 if styles == ("faint",) else 1.0, np.float32)
    assert not styles or np.abs(styled - images).mean() > 0.1


def test_styles_are_what_they_say() -> None:
    image = np.zeros((1, 8, 8), np.float32)
    image[0, 0, 7] = 1  # top right
    assert apply_styles(image, ("sideways",))[0, 0, 0] == 1  # a quarter turn to the left
    assert apply_styles(image, ("inverted",)).sum() == 63
    assert apply_styles(image, ("framed",)).sum() == 28 - 1  # the ring, where the ink was not
    assert apply_styles(image, ("faint",)).sum() == 0.5
    assert apply_styles(image, ("swapped",))[0, 0, 3] == 1
    upright = np.zeros((1, 8, 8), np.float32)
    upright[0, :, 4] = 1
    left, right = (apply_styles(upright, (f"slanted-{side}",))[0] for side in ("left", "right"))
    assert left.argmax(1).tolist() == [2, 3, 3, 4, 4, 5, 5, 6]
    assert right.argmax(1).tolist() == left.argmax(1).tolist()[::-1]


def test_one_word_asks_for_two_styles() -> None:
    assert [style for style in STYLES if STYLES[style].word == "slanted"] == ["slanted-left", "slanted-right"]
    assert WORDS == ("inverted", "sideways", "framed", "faint", "swapped", "slanted")
    assert all(STYLES[style].word == style for style in BASE_STYLES)
