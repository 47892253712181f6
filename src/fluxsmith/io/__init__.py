"""Bytes: opening checkpoints by their headers, views of their extents, and writing outputs all or nothing.

dtypes.py      element types and their names
header.py      the header of a safetensors file, read strictly and written
sniff.py       what a file is that is no safetensors file
checkpoint.py  what a checkpoint is, and the folders that its files lie in
opening.py     a file, a folder of shards, or files on the Hub, by headers alone
memory.py      state dicts in memory as checkpoints
pickled.py     torch.save files as extents, without running pickles
views.py       tensors as lists of byte extents
codecs/        quantised tensors: how they are stored, and their values
quantised.py   quantised checkpoints as views of values; which schemes are refused
gguf.py        GGUF files by their headers
schemes/       how quantised weights are written
gguf_header.py the header of a GGUF file that is written
shards.py      where every tensor of an output will lie
located.py     YAML with line and column of everything
writer.py      temporary file, preallocated, synced, verified, renamed
references.py  what a user names: paths, pocket/NAME, Hub repositories
numbers.py     small tensors that are read while a file is opened
hashing.py     BLAKE3 of inputs, remembered; ModelSpec's sha256
"""

from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.opening import open_checkpoint
from fluxsmith.io.views import Extent, View

__all__ = ["Checkpoint", "Extent", "View", "open_checkpoint"]
