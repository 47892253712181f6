"""The same delta in another dialect.

conversion.py     modules where the other layout has its tensors;  files.py  a whole file
cutting.py        rows of a module as a module of their own;  joining.py  neighbours as one, exactly
materialising.py  deltas made dense, and dense deltas made LoRA
"""
