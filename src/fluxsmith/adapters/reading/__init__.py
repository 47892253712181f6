"""From a file to an opened adapter.

detection.py    which dialect a file is written in, and for which family
sidecars.py     what comes with the tensors and says how they are meant: the header's fields, adapter_config.json
opening.py      keys to modules with their targets, every key accounted for
harmless.py     keys that mean nothing, by name or as they are all zero
refusals.py     why a file is not opened: one function per error
"""
