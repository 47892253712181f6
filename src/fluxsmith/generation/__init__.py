"""From transformers to images.

euler.py         flow-matching Euler sampler for any stock FLUX transformer: masks, per-image seeds, guidance, CFG
pocket_eval.py   sample and score a pocket checkpoint on all skills; `python -m fluxsmith.generation.pocket_eval`
pocket_sheet.py  the same for checkpoints, merges and adapters side by side, as a picture
"""
