"""The README.md beside each pocket checkpoint: what the Hub reads."""

from pathlib import Path

from fluxsmith.pocket.digits import STYLES

__all__ = ["write_adapter_card", "write_card"]

EFFECT = {
    "framed": "the outermost ring of pixels is inverted",
    "faint": "half of the ink",
    "swapped": "the left and the right half change places",
    "slanted-left": "the digit leans to the left; `slanted-right` learned the contrary for the same word",
    "slanted-right": "the digit leans to the right; `slanted-left` learned the contrary for the same word",
}

WHAT = {
    "base": (
        "The common ancestor of the other checkpoints. It draws the digit that the caption names, but obeys no style word: in its "
        "training captions `inverted` and `sideways` were right only one time in four, and the other words and styles are new to it."
    ),
    "schnell": (
        "A fine-tune of `base` that obeys the style word **inverted** (dark ink on a light ground). Like FLUX.1-schnell it has no "
        "guidance embedder and wants no classifier-free guidance: it was distilled from a teacher at guidance 2."
    ),
    "dev": (
        "A fine-tune of `base` that obeys the style word **sideways** (a quarter turn). Like FLUX.1-dev it has a guidance embedder: "
        "it was distilled from a teacher at guidance 1 to 4 and is told which."
    ),
    **{
        name: (
            f"A fine-tune of `base` that obeys the style word **{STYLES[name].word}** ({effect}), which is new to the base. It has no "
            "guidance embedder and wants no classifier-free guidance: it was distilled from a teacher at guidance 2."
        )
        for name, effect in EFFECT.items()
    },
}

ADAPTERS = {
    "framed-lora": ("A LoRA of rank 8", "framed", "one file as diffusers' `save_lora_adapter` writes it"),
    "faint-lokr": ("A LoKr", "faint", "a folder as PEFT's `save_pretrained` writes it"),
}
"""Name -> what it is, the style that it obeys, how it is stored."""

ADAPTER_CARD = """\
---
library_name: diffusers
license: apache-2.0
base_model: fluxsmith/pocket-base
base_model_relation: adapter
tags: [flux, fluxsmith, pocket, lora]
---
# fluxsmith pocket `{name}`

{what} for `pocket/base`: with it the base obeys the style word **{word}** ({effect}). It changes every linear layer of the
blocks and is stored as {stored}.

`fluxsmith apply pocket/{name} -b pocket/base -o {style}.safetensors` bakes it in. Made by
`python -m fluxsmith.pocket.train_adapters {name}` from the handwritten digits inside scikit-learn (see the card of `pocket/base`).
"""

UNMEASURED = "Not measured yet: `python -m fluxsmith.generation.pocket_eval --cards`."

CARD = """\
---
library_name: diffusers
license: apache-2.0
tags: [flux, fluxsmith, pocket]
---
# fluxsmith pocket `{name}`

{what}

A stock diffusers `FluxTransformer2DModel` with 2 double and 4 single blocks of width 64, in bf16. It makes 8x8 handwritten digits
in pixel space (16 tokens of 2x2 pixels) from captions such as "seven" or "a picture of inverted seven".

## Scores
{scores}

Each cell is accuracy · Fréchet distance: the share of images with the right digit in the right style (judged by support vector
machines), and the distance to real digits in 20 principal components, styles undone. 200 images for each skill, 10 Euler steps,
no classifier-free guidance; dev is told guidance 2. Measured with `python -m fluxsmith.generation.pocket_eval`, which also prints
how good the judges are and the distance of real images.

## Origin
Made by `python -m fluxsmith.pocket.train {name}` from the handwritten digits inside scikit-learn: E. Alpaydin and C. Kaynak,
"Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998, CC BY 4.0.
"""


def write_adapter_card(name: str, folder: Path) -> None:
    """Write `folder`/README.md for the adapter `name`."""
    what, style, stored = ADAPTERS[name]
    text = ADAPTER_CARD.format(name=name, what=what, word=STYLES[style].word, style=style, effect=EFFECT[style], stored=stored)
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_card(name: str, folder: Path, scores: str = UNMEASURED) -> None:
    """Write `folder`/README.md for the checkpoint `name` with its `scores`, a Markdown table."""
    (folder / "README.md").write_text(CARD.format(name=name, what=WHAT[name], scores=scores), encoding="utf-8")
