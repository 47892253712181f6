"""The language of the pocket world: a small caption grammar and a frozen text encoder.

    caption = "" | [frame] {word} digit           "seven", "a picture of inverted seven", "the digit inverted sideways two"

"" is the unconditional caption. The encoder has no learned part: each word owns two random vectors, keyed by (seed, word),
one for its token (the place of T5 in FLUX) and one for the pooled vector (the place of CLIP).
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch

from fluxsmith.errors import UsageError, did_you_mean
from fluxsmith.pocket.digits import DIGIT_WORDS, STYLES, WORDS
from fluxsmith.pocket.forward import Conditioning
from fluxsmith.pocket.streams import stream

__all__ = ["CONTEXT_DIM", "FRAMES", "POOLED_DIM", "TOKENS", "VOCABULARY", "caption", "encode"]

CONTEXT_DIM = 32
POOLED_DIM = 32
TOKENS = 8
ENCODER_SEED = 0
END = "</s>"
PAD = "<pad>"

FRAMES = ("", "handwritten", "the digit", "a picture of")
FRAME_WORDS = tuple(word for frame in FRAMES for word in frame.split())
VOCABULARY = (*DIGIT_WORDS, *WORDS, *FRAME_WORDS)


def caption(digit: int, styles: Sequence[str] = (), frame: str = "") -> str:
    """The caption of `digit` in `styles`, for example "a picture of inverted seven"."""
    return " ".join([*frame.split(), *(STYLES[style].word for style in styles), DIGIT_WORDS[digit]])


def encode(captions: Sequence[str]) -> Conditioning:
    """Encode N captions: prompt_embeds [N, 8, 32], pooled [N, 32], and a bool mask [N, 8], true where a token is real."""
    embeds = torch.stack([torch.stack([_vector("token", token) for token in _tokens(text)]) for text in captions])
    pooled = torch.stack([_pooled(text) for text in captions])
    mask = torch.tensor([[token != PAD for token in _tokens(text)] for text in captions])
    return Conditioning(embeds, pooled, mask)


def _words(text: str) -> list[str]:
    words = text.split()
    unknown = [word for word in words if word not in VOCABULARY]
    if unknown:
        raise UsageError(
            "pocket.unknown-word",
            f"the pocket world does not know `{unknown[0]}`",
            facts={"caption": text, "known": ", ".join(VOCABULARY)},
            fix=did_you_mean(unknown[0], VOCABULARY),
        )
    return words


def _tokens(text: str) -> list[str]:
    tokens = [*_words(text), END]
    if len(tokens) > TOKENS:
        raise UsageError("pocket.long-caption", f"a pocket caption has at most {TOKENS - 1} words", facts={"caption": text})
    return tokens + [PAD] * (TOKENS - len(tokens))


@lru_cache
def _vector(table: str, token: str) -> torch.Tensor:
    size = CONTEXT_DIM if table == "token" else POOLED_DIM
    return torch.randn(size, generator=stream(ENCODER_SEED, f"{table}/{token}"))


def _pooled(text: str) -> torch.Tensor:
    """The sum of the words' pooled vectors, scaled to about unit variance."""
    words = [*_words(text), END]
    return torch.stack([_vector("pooled", word) for word in words]).sum(0) / math.sqrt(len(words))
