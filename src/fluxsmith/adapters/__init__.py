"""Stored deltas (LoRA and its kin): what a file holds for which tensor, and the exact delta that it means.

module.py            one module of an adapter: algorithm, factors as bytes, scale, where it goes; an opened adapter
targets.py           where a module's name leads: tensors and rows of a family's table
detection.py         which dialect a file is written in, and for which family
opening.py           keys to modules, every key accounted for; sidecars.py: what stands beside the tensors
refusals.py          why a file is not opened: one function per error
harmless.py          keys that mean nothing, by name or as they are all zero
tensors.py           modules whose factors have been read, and their deltas
writing.py           modules to a file; scales.py: where the scale goes; spelling.py, translating.py: names;
                     sidecar_writing.py, provenance.py: metadata
conversion.py        modules where another dialect has its tensors; converting.py: to a file; cutting.py, joining.py: exactly,
                     materialising.py: as dense deltas, or the nearest LoRA
extraction.py        a delta as a module; factorise.py: the nearest matrix of low rank, rank.py: of which rank; kronecker.py: the nearest
                     Kronecker product; findings.py: what was lost; places.py: where a dialect has a tensor
rewriting.py         adapters written anew: resizing.py: with other ranks; combining.py: several as one
algorithms/          the mathematics, one file per algorithm: factors to a delta
dialects/            the names, one file per dialect: keys of a file to modules and back
"""

from fluxsmith.adapters.module import Adapter, Module

__all__ = ["Adapter", "Module"]
