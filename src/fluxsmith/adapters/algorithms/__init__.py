"""The mathematics of adapters: from factors to the exact delta in fp32, in the layout in which it was trained.

base.py    what an algorithm is
lora.py    LoRA, LoCon
"""

from fluxsmith.adapters.algorithms.base import Algorithm, Rows
from fluxsmith.adapters.algorithms.lora import LORA

__all__ = ["ALGORITHMS", "Algorithm", "Rows"]

#: Every algorithm by name; a new one is one file and one entry here.
ALGORITHMS: dict[str, Algorithm] = {a.name: a for a in (LORA,)}
