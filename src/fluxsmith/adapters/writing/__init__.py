"""From modules to a file.

writer.py       modules as tensors, one after another, to a file in a dialect, all or nothing
places.py       which modules a dialect has for a tensor
spelling.py     what a module is called in a dialect;  translating.py  its factors in another vocabulary
scales.py       where a scale goes, so that whoever reads the file multiplies by exactly that
sidecar.py      what stands beside the tensors: JSON in the header, or adapter_config.json
provenance.py   what the file says of itself
"""
