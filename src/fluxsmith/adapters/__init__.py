"""Stored deltas (LoRA and its kin): what a file holds for which tensor, and the exact delta that it means.

module.py            one module of an adapter: algorithm, factors as bytes, scale, where it goes; an opened adapter
targets.py           where a module's name leads: tensors and rows of a family's table
detection.py         which dialect a file is written in, and for which family
opening.py           keys to modules, every key accounted for
refusals.py          why a file is not opened: one function per error
harmless.py          keys that mean nothing, by name or as they are all zero
algorithms/          the mathematics, one file per algorithm: factors to a delta
dialects/            the names, one file per dialect: keys of a file to modules and back
"""

from fluxsmith.adapters.module import Adapter, Module

__all__ = ["Adapter", "Module"]
