import numpy as np
import pytest
import torch

from fluxsmith.pocket.digits import STYLES, apply_styles, load_split, pack, undo_styles, unpack


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


@pytest.mark.parametrize("words", [(), ("inverted",), ("sideways",), ("inverted", "sideways")])
def test_undo_is_the_way_back(words: tuple[str, ...]) -> None:
    images = load_split("test").images
    assert np.allclose(undo_styles(apply_styles(images, words), words), images, atol=1e-6)


def test_styles_are_what_they_say() -> None:
    image = np.zeros((1, 8, 8), np.float32)
    image[0, 0, 7] = 1  # top right
    assert apply_styles(image, ("sideways",))[0, 0, 0] == 1  # a quarter turn to the left
    assert apply_styles(image, ("inverted",)).sum() == 63
    assert list(STYLES) == ["inverted", "sideways"]
