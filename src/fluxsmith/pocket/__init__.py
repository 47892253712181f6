"""The pocket world: tiny FLUX checkpoints that ship in the package, with their language, data and scores.

They are stock diffusers transformers of 0.6 M parameters that draw real handwritten digits (8x8 pixels) from captions, so every
command can be tried, tested and measured offline in seconds. Style words are the skills: `schnell` obeys "inverted",
`dev` obeys "sideways", their common `base` neither, and a merge of the two both. Five more fine-tunes obey words that are
new to the base: `framed`, `faint`, `swapped`, and for "slanted" both `slanted-left` and `slanted-right`, a true conflict.

    checkpoints.py    the shipped checkpoints by name              weights/   their folders, as on the Hub

    digits.py         images, styles, train/test split, 2x2 packing into FLUX tokens
    captions.py       caption grammar and frozen text encoder
    forward.py        one call of a stock transformer with a bool text mask; knows nothing of digits
    score.py          judges of digit and style, Fréchet distance, and how good the judges are
    sheet.py          contact sheets

    train.py          `python -m fluxsmith.pocket.train`: makes the weights, in ten minutes of one CPU thread
    train_adapters.py `python -m fluxsmith.pocket.train_adapters`: a LoRA and a LoKr for the base
    architecture.py   their shape and initialisation
    batches.py        training examples: which captions tell the truth, noise, times
    flow.py           the two losses
    streams.py        random generators by name
    card.py           the README.md beside the weights
"""
