"""Names and shapes: one declarative table per family gives both directions, the expected keys and the blocks.

table.py       what a row of a table says, and how it expands to tensors
flux1.py       FLUX.1 (a new family is one such file and one line in TABLES below)
structural.py  any other state dict, as it is
detection.py   which family and layout a file has
binding.py     a checkpoint as views of canonical tensors
emission.py    canonical tensors written in any layout
"""

from fluxsmith.layouts.binding import Bound
from fluxsmith.layouts.chroma import CHROMA
from fluxsmith.layouts.flux1 import FLUX1
from fluxsmith.layouts.flux2 import FLUX2
from fluxsmith.layouts.sd3 import SD3
from fluxsmith.layouts.stable_diffusion import SD15, SDXL
from fluxsmith.layouts.table import Canonical, Table

__all__ = ["LAYOUTS", "TABLES", "Bound", "Canonical", "Table", "table_of"]

TABLES: tuple[Table, ...] = (FLUX1, FLUX2, CHROMA, SD15, SDXL, SD3)

LAYOUTS: dict[str, str] = {
    "bfl": "Black Forest Labs' own names: fused qkv and linear1, no prefix",
    "diffusers": "Hugging Face diffusers: split q, k, v; a folder with shards, an index and config.json",
    "comfy": "BFL names after `model.diffusion_model.`, one file; of Stable Diffusion the original layout",
    "ldm": "Stable Diffusion 1.5's original names, all components in one file",
    "sgm": "SDXL's and SD3's original names, all components in one file",
}


def table_of(family: str) -> Table | None:
    """The table of a family, None for a structural checkpoint."""
    return next((table for table in TABLES if table.family == family), None)
