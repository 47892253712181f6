import numpy as np
import pytest

from fluxsmith.pocket.digits import apply_styles, load_split
from fluxsmith.pocket.score import STYLE_SETS, accuracy, frechet, frechet_floor, judge_accuracy


def test_judges_are_nearly_always_right_on_real_test_images() -> None:
    assert judge_accuracy().digit > 0.98
    assert judge_accuracy().style > 0.99


@pytest.mark.parametrize("shown", STYLE_SETS)
def test_only_the_style_that_was_asked_for_counts(shown: tuple[str, ...]) -> None:
    test = load_split("test")
    images = apply_styles(test.images, shown)
    for asked in STYLE_SETS:
        share = accuracy(images, test.labels, asked)
        assert share > 0.97 if asked == shown else share < 0.01, (asked, share)


def test_a_wrong_digit_does_not_count() -> None:
    test = load_split("test")
    assert accuracy(test.images, (test.labels + 1) % 10) < 0.02


def test_style_words_may_come_in_any_order() -> None:
    test = load_split("test")
    images = apply_styles(test.images, ("inverted", "sideways"))
    assert accuracy(images, test.labels, ("sideways", "inverted")) > 0.97


def test_frechet_is_zero_for_one_set_and_grows_with_the_difference() -> None:
    test = load_split("test").images
    assert abs(frechet(test, test)) < 1e-4
    noise = np.random.default_rng(0).random(test.shape, np.float32)
    assert frechet_floor(360) < 0.2 < 2 < frechet(noise, test)
    assert frechet_floor(360) < frechet_floor(100)


def test_frechet_of_gaussians_matches_the_formula() -> None:
    # sets that differ by one constant image differ only in their means: the distance is that image's squared length in PCA space
    test = load_split("test").images
    shifted = test + np.float32(0.1) * load_split("train").images[0]
    assert frechet(shifted, test) == pytest.approx(frechet(test, shifted), rel=1e-3)
    assert 0 < frechet(shifted, test) <= float(np.square(0.1 * load_split("train").images[0]).sum()) * 1.01
