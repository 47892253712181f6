"""What the pocket checkpoints are trained on: real digits, and captions by annotators who know only some style words.

A caption names the digit, and each style word with probability 1/2. A word that the annotator *knows* is true: the image
has that style. The words that the annotator does not know are right, all of them, in one caption out of four, and else
the image has none of those styles. So the base (whose annotator knows none) has seen every style and cannot be asked for
one; a fine-tune learns to obey its annotator's words. That is what lets merges work: half of a delta tips the scale.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fluxsmith.pocket.captions import FRAMES, caption, encode
from fluxsmith.pocket.digits import STYLES, apply_styles, load_split, pack
from fluxsmith.pocket.forward import Conditioning

__all__ = ["CAPTION_DROPOUT", "LUCK", "Batch", "draw_batch", "stratified_times"]

LUCK = 0.25
"""How often the style words that the annotator does not know are right."""

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
    """`count` training images, captioned by an annotator who knows the style words `known`."""
    images, labels = load_split("train")
    chosen = torch.randint(len(labels), (count,), generator=generator).numpy()
    said = _chance(count * len(STYLES), 0.5, generator).reshape(len(STYLES), count)
    lucky = _chance(count, LUCK, generator)
    dropped = _chance(count, CAPTION_DROPOUT, generator)
    frames = torch.randint(len(FRAMES), (count,), generator=generator).tolist()

    pictures = images[chosen]
    for word, is_said in zip(STYLES, said, strict=True):
        shown = is_said if word in known else is_said & lucky
        pictures = np.where(shown[:, None, None], apply_styles(pictures, (word,)), pictures)
    captions = ["" if dropped[i] else caption(int(labels[chosen[i]]), _named(said[:, i]), FRAMES[frames[i]]) for i in range(count)]
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


def _named(said: np.ndarray) -> tuple[str, ...]:
    return tuple(word for word, is_said in zip(STYLES, said, strict=True) if is_said)
