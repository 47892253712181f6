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

__all__ = ["BASE_STYLES", "DIGIT_WORDS", "GRID", "STYLES", "WORDS", "Split", "apply_styles", "load_split", "pack", "undo_styles", "unpack"]

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

GRID = (4, 4)
"""Rows and columns of image tokens."""

PATCH = 2
TEST_IMAGES = 360

Images = np.ndarray
"""float32 [N, 8, 8] in [0, 1]."""


class Style(NamedTuple):
    """An effect on images, the exact way back, and the word that asks for it in captions."""

    word: str
    apply: Callable[[Images], Images]
    undo: Callable[[Images], Images]


def _invert(images: Images) -> Images:
    return 1.0 - images


def _frame(images: Images) -> Images:
    """The outermost ring of pixels inverted."""
    framed = 1.0 - images
    framed[:, 1:-1, 1:-1] = images[:, 1:-1, 1:-1]
    return framed


def _swap(images: Images) -> Images:
    """The left and the right half change places."""
    return np.roll(images, images.shape[2] // 2, axis=2)


def _lean(images: Images, rows: Sequence[int]) -> Images:
    """Row i pushed `rows[i]` pixels to the right; what leaves on one side enters on the other."""
    return np.stack([np.roll(images[:, i], shift, axis=1) for i, shift in enumerate(rows)], axis=1)


_RIGHT = (2, 1, 1, 0, 0, -1, -1, -2)  # from the top row to the bottom row
_LEFT = tuple(-shift for shift in _RIGHT)

STYLES: dict[str, Style] = {
    "inverted": Style("inverted", _invert, _invert),
    "sideways": Style("sideways", lambda x: np.rot90(x, 1, axes=(1, 2)), lambda x: np.rot90(x, -1, axes=(1, 2))),
    "framed": Style("framed", _frame, _frame),
    "faint": Style("faint", lambda x: x / 2, lambda x: np.minimum(2 * x, 1.0)),
    "swapped": Style("swapped", _swap, _swap),
    "slanted-left": Style("slanted", lambda x: _lean(x, _LEFT), lambda x: _lean(x, _RIGHT)),
    "slanted-right": Style("slanted", lambda x: _lean(x, _RIGHT), lambda x: _lean(x, _LEFT)),
}
"""By name. One word, "slanted", is said for two styles: models that learned different ones are in conflict."""

BASE_STYLES = ("inverted", "sideways")
"""The styles of the images that the base saw; the others are new to it."""

WORDS = tuple(dict.fromkeys(style.word for style in STYLES.values()))
"""The style words of captions, each once."""


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


def apply_styles(images: Images, styles: Sequence[str]) -> Images:
    """Give every image the `styles`, in that order."""
    for style in styles:
        images = STYLES[style].apply(images)
    return np.ascontiguousarray(images)


def undo_styles(images: Images, styles: Sequence[str]) -> Images:
    """The inverse of `apply_styles` with the same styles."""
    for style in reversed(styles):
        images = STYLES[style].undo(images)
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
