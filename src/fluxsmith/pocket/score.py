"""Scores of sampled digits: is it the right digit in the right style, and does the whole set look like real ones?

Pure functions over images, float32 [N, 8, 8] in [0, 1]. The judges (support vector machines, a PCA) are fitted once per
process on the real training part; `judge_accuracy` says how good they are on the real test part.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fluxsmith.pocket.digits import BASE_STYLES, STYLES, Images, apply_styles, load_split, undo_styles

if TYPE_CHECKING:
    from sklearn.decomposition import PCA
    from sklearn.svm import SVC

__all__ = [
    "STYLE_SETS",
    "JudgeAccuracy",
    "accuracy",
    "frechet",
    "frechet_floor",
    "judge_accuracy",
    "judge_digits",
    "judge_styles",
    "right",
]

STYLE_SETS = ((), ("inverted",), ("sideways",), ("inverted", "sideways"), *((style,) for style in STYLES if style not in BASE_STYLES))
"""What the style judge tells apart: every combination of the base's styles, () first, and each other style alone."""

SVC_GAMMA = 0.256
"""scikit-learn's 0.001 for pixels 0..16, here for pixels 0..1."""

PCA_COMPONENTS = 20


class JudgeAccuracy(NamedTuple):
    """Share of real test images that the judges name rightly."""

    digit: float
    style: float


def judge_digits(images: Images) -> np.ndarray:
    """The digit [N] that each image shows, read upright and in dark ink: undo the style first."""
    return _digit_judge().predict(_flat(images))


def judge_styles(images: Images) -> np.ndarray:
    """The index [N] into `STYLE_SETS` of the style that each image has."""
    return _style_judge().predict(_flat(images))


def right(images: Images, digits: np.ndarray, styles: Sequence[str] = ()) -> np.ndarray:
    """Bool [N]: the image has exactly these `styles`, and without them shows the digit of `digits` [N].

    So an upright seven does not count when a sideways seven was asked for.
    """
    in_style = judge_styles(images) == STYLE_SETS.index(tuple(style for style in STYLES if style in styles))
    return in_style & (judge_digits(undo_styles(images, styles)) == digits)


def accuracy(images: Images, digits: np.ndarray, styles: Sequence[str] = ()) -> float:
    """The share of images that are `right`."""
    return float(right(images, digits, styles).mean())


@lru_cache
def judge_accuracy() -> JudgeAccuracy:
    """How often the judges are right on the real test part (styles: averaged over `STYLE_SETS`)."""
    images, labels = load_split("test")
    style = [(judge_styles(apply_styles(images, styles)) == i).mean() for i, styles in enumerate(STYLE_SETS)]
    return JudgeAccuracy(float((judge_digits(images) == labels).mean()), float(np.mean(style)))


def frechet(images: Images, reference: Images) -> float:
    """Fréchet distance of two sets of upright images: Gaussians over the first 20 principal components of real digits.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))  (Dowson and Landau 1982; the FID of Heusel et al. 2017 on other features).
    It shrinks with more images: compare only sets of one size, and beside `frechet_floor` for that size.
    """
    a, b = (_pca().transform(_flat(x)) for x in (images, reference))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root_a = _root(cov_a)
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root_a @ cov_b @ root_a), 0, None)).sum()
    mean = np.square(a.mean(0) - b.mean(0)).sum()
    return float(mean + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def frechet_floor(count: int) -> float:
    """Fréchet distance of the first `count` real test images to the real training part: what a perfect model would get."""
    return frechet(load_split("test").images[:count], load_split("train").images)


def _flat(images: Images) -> np.ndarray:
    return images.reshape(len(images), -1)


def _root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


@lru_cache
def _digit_judge() -> "SVC":
    from sklearn.svm import SVC

    images, labels = load_split("train")
    return SVC(gamma=SVC_GAMMA).fit(_flat(images), labels)


@lru_cache
def _style_judge() -> "SVC":
    from sklearn.svm import SVC

    images, _ = load_split("train")
    styled = np.concatenate([apply_styles(images, styles) for styles in STYLE_SETS])
    return SVC(gamma=SVC_GAMMA).fit(_flat(styled), np.repeat(np.arange(len(STYLE_SETS)), len(images)))


@lru_cache
def _pca() -> "PCA":
    from sklearn.decomposition import PCA

    return PCA(PCA_COMPONENTS, svd_solver="full").fit(_flat(load_split("train").images))
