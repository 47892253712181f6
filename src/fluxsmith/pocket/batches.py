"""What the pocket checkpoints are trained on: real digits, and captions by annotators who know only some styles.

A caption names the digit and, each with probability 1/2, the words of the base's styles and of the styles that its
annotator knows. A style that the annotator *knows* is true: the image has it where its word is said. The others are
right, all of them, in one caption out of four, and else the image has none of them. So the base (whose annotator knows
none) has seen its two styles and cannot be asked for one; a fine-tune learns to obey its annotator's word. Half of a
delta then tips the scale for the base's own styles, while the others are new to it, as in most real fine-tunes.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import compress
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fluxsmith.pocket.captions import FRAMES, caption, encode
from fluxsmith.pocket.digits import BASE_STYLES, apply_styles, load_split, pack
from fluxsmith.pocket.forward import Conditioning

__all__ = ["CAPTION_DROPOUT", "LUCK", "Batch", "draw_batch", "stratified_times"]

LUCK = 0.25
"""How often the words of the styles that the annotator does not know are right."""

CAPTION_DROPOUT = 0.1
"""How often the caption is "", for the unconditional branch."""


class Batch(NamedTuple):
    """`clean` and `noise` [B, 16, 4], `times` [B] in 0..1, and the conditioning of B captions."""

    clean: Tensor
    noise: Tensor
    times: Tensor
    conditioning: Conditioning

    @property
    def noisy(self) -> Tensor:
        """x_t = (1 - t) clean + t noise."""
        return torch.lerp(self.clean, self.noise, self.times[:, None, None])


def draw_batch(count: int, known: Collection[str], generator: torch.Generator) -> Batch:
    """`count` training images, captioned by an annotator who knows the styles `known`."""
    styles = (*BASE_STYLES, *(style for style in known if style not in BASE_STYLES))
    images, labels = load_split("train")
    chosen = torch.randint(len(labels), (count,), generator=generator).numpy()
    said = _chance(count * len(styles), 0.5, generator).reshape(len(styles), count)
    lucky = _chance(count, LUCK, generator)
    dropped = _chance(count, CAPTION_DROPOUT, generator)
    frames = torch.randint(len(FRAMES), (count,), generator=generator).tolist()

    pictures = images[chosen]
    for style, is_said in zip(styles, said, strict=True):
        shown = is_said if style in known else is_said & lucky
        pictures = np.where(shown[:, None, None], apply_styles(pictures, (style,)), pictures)
    named = [tuple(compress(styles, row)) for row in said.T]
    captions = ["" if dropped[i] else caption(int(labels[chosen[i]]), named[i], FRAMES[frames[i]]) for i in range(count)]
    clean = pack(pictures)
    noise = torch.randn(clean.shape, generator=generator)
    return Batch(clean, noise, stratified_times(count, generator), encode(captions))


def stratified_times(count: int, generator: torch.Generator) -> Tensor:
    """Logit-normal times [count] (Esser et al. 2024, section 3.1), one from each of `count` equal quantiles, shuffled."""
    quantiles = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    quantiles = quantiles[torch.randperm(count, generator=generator)].clamp(1e-4, 1 - 1e-4)
    return torch.special.ndtri(quantiles).sigmoid()


def _chance(count: int, probability: float, generator: torch.Generator) -> np.ndarray:
    return (torch.rand(count, generator=generator) < probability).numpy()
