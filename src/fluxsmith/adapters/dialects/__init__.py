"""The names of adapters: keys of a file to modules and back, one file per dialect.

base.py    what a dialect is
kohya.py   kohya's sd-scripts and LyCORIS
"""

from fluxsmith.adapters.dialects.base import MAIN, Dialect, Draft, Key
from fluxsmith.adapters.dialects.kohya import KOHYA

__all__ = ["DIALECTS", "MAIN", "Dialect", "Draft", "Key"]

#: Every dialect by name; a new one is one file and one entry here. Where two read a file alike, the first is named.
DIALECTS: dict[str, Dialect] = {d.name: d for d in (KOHYA,)}
