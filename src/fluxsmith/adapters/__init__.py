"""Stored deltas (LoRA and its kin): what a file holds for which tensor, and the exact delta that it means.

module.py     one module of an adapter: algorithm, factors as bytes, scale, where it goes; an opened adapter
targets.py    where a module's name leads: tensors and rows of a family's table
tensors.py    modules whose factors have been read, and their deltas
algorithms/   the mathematics, one file per algorithm: factors to a delta
dialects/     the names, one file per dialect: keys of a file to modules and back
reading/      from a file to an opened adapter;  writing/  the way back
converting/   the same delta in another dialect
extracting/   from a delta to modules;  rewriting/  adapters resized, or several as one
"""

from fluxsmith.adapters.module import Adapter, Module

__all__ = ["Adapter", "Module"]
