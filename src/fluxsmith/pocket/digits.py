"""The images of the pocket world: handwritten digits, their styles, and their way into FLUX tokens.

Source: the UCI "Optical Recognition of Handwritten Digits" test set, 1797 real 8x8 scans that come inside the
scikit-learn wheel (`sklearn.datasets.load_digits`), so nothing is downloaded.

An *image* here is a float32 array [N, 8, 8] in [0, 1], ink is 1. A *latent* is what a FLUX transformer sees: the image in
[-1, 1], packed in 2x2 patches to [N, 16, 4], as the real pipelines pack their 16-channel latents to 64.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fluxsmith.errors import UsageError

__all__ = ["DIGIT_WORDS", "GRID", "STYLES", "Split", "apply_styles", "load_split", "pack", "undo_styles", "unpack"]

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

GRID = (4, 4)
"""Rows and columns of image tokens."""

PATCH = 2
TEST_IMAGES = 360

Images = np.ndarray
"""float32 [N, 8, 8] in [0, 1]."""


class Style(NamedTuple):
    """A style word's effect on images and the exact way back."""

    apply: Callable[[Images], Images]
    undo: Callable[[Images], Images]


def _invert(images: Images) -> Images:
    return 1.0 - images


STYLES: dict[str, Style] = {
    "inverted": Style(_invert, _invert),
    "sideways": Style(lambda x: np.rot90(x, 1, axes=(1, 2)), lambda x: np.rot90(x, -1, axes=(1, 2))),
}


class Split(NamedTuple):
    """One part of the data: `images` [N, 8, 8] in [0, 1] and `labels` [N] in 0..9."""

    images: Images
    labels: np.ndarray


@lru_cache
def load_split(part: Literal["train", "test"]) -> Split:
    """The `train` (1437 images) or `test` (360 images) part, in an order fixed by hashes: the same on every machine."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError("usage.missing-extra", f"{error.name} is not installed", fix="pip install 'fluxsmith[generate]'") from None

    data = load_digits()
    order = sorted(range(len(data.target)), key=lambda index: hashlib.sha256(f"split/{index}".encode()).digest())
    chosen = {"test": order[:TEST_IMAGES], "train": order[TEST_IMAGES:]}[part]
    return Split((data.images[chosen] / 16.0).astype(np.float32), data.target[chosen])


def apply_styles(images: Images, words: Sequence[str]) -> Images:
    """Give every image the styles named by `words`, in that order."""
    for word in words:
        images = STYLES[word].apply(images)
    return np.ascontiguousarray(images)


def undo_styles(images: Images, words: Sequence[str]) -> Images:
    """The inverse of `apply_styles` with the same words."""
    for word in reversed(words):
        images = STYLES[word].undo(images)
    return np.ascontiguousarray(images)


def pack(images: Images) -> Tensor:
    """Images [N, 8, 8] in [0, 1] to packed latents [N, 16, 4] in [-1, 1]."""
    rows, columns = GRID
    x = torch.from_numpy(images) * 2 - 1
    x = x.reshape(-1, rows, PATCH, columns, PATCH).permute(0, 1, 3, 2, 4)
    return x.reshape(-1, rows * columns, PATCH * PATCH)


def unpack(latents: Tensor) -> Images:
    """Packed latents [N, 16, 4] to images [N, 8, 8], clipped to [0, 1]."""
    rows, columns = GRID
    x = latents.float().reshape(-1, rows, columns, PATCH, PATCH).permute(0, 1, 3, 2, 4)
    x = x.reshape(-1, rows * PATCH, columns * PATCH)
    return ((x + 1) / 2).clamp(0, 1).numpy()
