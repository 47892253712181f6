"""Names and shapes: one declarative table per family gives both directions, the expected keys and the blocks.

table.py             what a row of a table says, and how it expands to tensors
flux1.py             FLUX.1;  flux2.py, chroma.py: FLUX.2, Chroma (a new family is one such file and one line in families.py)
components.py        families of several components: unet.py, text_encoders.py, autoencoder.py put together in
                     stable_diffusion.py (SD1.5, SDXL) and sd3.py
standalone.py        a text encoder or VAE as a file of its own; ownership.py: whose keys are whose, whatever they hold
structural.py        any other state dict, as it is; checkpoints of transformers
detection.py         which family and layout a file has
binding.py           a checkpoint as views of canonical tensors
emission.py          canonical tensors written in any layout
configs.py           config.json of a diffusers folder from the shapes; pipeline_configs.py: of a pipeline's components
families.py          all tables, with users' own; table_file.py: one as YAML; learning.py: one from a checkpoint
overview.py          all families at a glance
"""

from fluxsmith.layouts.binding import Bound
from fluxsmith.layouts.families import TABLES, known_tables, table_of
from fluxsmith.layouts.flux1 import FLUX1
from fluxsmith.layouts.table import Canonical, Table

__all__ = ["FLUX1", "LAYOUTS", "TABLES", "Bound", "Canonical", "Table", "known_tables", "table_of"]

LAYOUTS: dict[str, str] = {
    "bfl": "Black Forest Labs' own names: fused qkv and linear1, no prefix",
    "diffusers": "Hugging Face diffusers: split q, k, v; a folder with shards, an index and config.json; a pipeline has one per component",
    "comfy": "BFL names after `model.diffusion_model.`, one file; of Stable Diffusion the original layout",
    "ldm": "Stable Diffusion 1.5's original names, all components in one file",
    "sgm": "SDXL's and SD3's original names, all components in one file",
    "transformers": "Hugging Face transformers: keys as they are, a folder with config.json and tokenizer; blocks `layer.N`",
    "original": "the one layout of a family that was learnt from a file",
}
