"""Looking at checkpoints: what one is, what is in it, and how two differ. Inputs are only read, by headers or in tiles.

    inspection.py  what a checkpoint is, from its headers; nothing is refused that has a header
    adapter_inspection.py  what an adapter is: dialect, algorithms, ranks, scale, blocks
    kinds.py       the words for it: kinds of FLUX.1, other families, components, schemes of quantisation
    reading.py     FLUX.1 read as far as it goes, with what is missing
    difference.py  two checkpoints compared tensor by tensor, in any layouts
    values.py      magnitudes, zeros and non-finite values of one checkpoint
    examples.py    examples to measure a model on, from the pocket world or a file
    symmetries.py  units of FLUX.1 that may change places without changing what it computes
    matching.py    the order of units in which two models are nearest (Git Re-Basin)
    rebasin.py     one checkpoint in the order of another
    survey.py      numbers per tile of many tensors, streamed by the engine's threads

Importing any of these files imports no torch; looking at values does.
"""
