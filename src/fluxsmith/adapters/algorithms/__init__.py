"""The mathematics of adapters: from factors to the exact delta in fp32, in the layout in which it was trained.

base.py      what an algorithm is
lora.py      LoRA, LoCon
loha.py      LoHa
lokr.py      LoKr
dora.py      DoRA, over any of these
diff.py      the difference itself
replace.py   values in place of the base's
oft.py       OFT
boft.py      BOFT
cayley.py    the rotations of these two
ia3.py       (IA)^3
glora.py     GLoRA
"""

from fluxsmith.adapters.algorithms.base import Algorithm, Reads, Rows, Settings, Shapes
from fluxsmith.adapters.algorithms.boft import BOFT
from fluxsmith.adapters.algorithms.diff import DIFF
from fluxsmith.adapters.algorithms.dora import decomposed
from fluxsmith.adapters.algorithms.glora import GLORA
from fluxsmith.adapters.algorithms.ia3 import IA3
from fluxsmith.adapters.algorithms.loha import LOHA
from fluxsmith.adapters.algorithms.lokr import LOKR
from fluxsmith.adapters.algorithms.lora import LORA
from fluxsmith.adapters.algorithms.oft import OFT
from fluxsmith.adapters.algorithms.replace import REPLACE

__all__ = ["ALGORITHMS", "Algorithm", "Reads", "Rows", "Settings", "Shapes", "find_algorithm"]

#: Every algorithm by name; a new one is one file and one entry here.
ALGORITHMS: dict[str, Algorithm] = {
    a.name: a for a in (decomposed(LORA), decomposed(LOHA), decomposed(LOKR), DIFF, REPLACE, OFT, BOFT, IA3, GLORA)
}  # fmt: skip


def find_algorithm(parts: Shapes, *, bias: bool = False) -> Algorithm | None:
    """The algorithm of a module by the last parts of its keys, with their shapes; None where they belong to no one
    algorithm. `bias` is for the keys of a bias beside a weight."""
    for algorithm in ALGORITHMS.values():
        stored = algorithm.biases if bias else algorithm.roles
        if parts.keys() <= {*stored, *algorithm.numbers} and algorithm.matches(parts):
            return algorithm
    return None
