"""Components as files of their own: a text encoder or a VAE alone, as ComfyUI and Black Forest Labs offer them.

clip_l.safetensors, t5xxl.safetensors    transformers' names, layout `diffusers`
clip_g.safetensors                       those, or OpenCLIP's as in SDXL's own file, layout `sgm`
ae.safetensors, vae.safetensors          the original names, layout `ldm`, or those of AutoencoderKL, layout `diffusers`

Families are called as the components are in the tables of whole models, and so are their canonical names
(`clip_l.text_model...`), so that they can take the place of those (`adopted`).
"""

from collections.abc import Mapping
from dataclasses import replace

from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.layouts.autoencoder import autoencoder_rows
from fluxsmith.layouts.binding import Bound
from fluxsmith.layouts.components import Component, rows_of
from fluxsmith.layouts.stable_diffusion import DROPS, VAE_ALIASES
from fluxsmith.layouts.table import Row, Table
from fluxsmith.layouts.text_encoders import clip_rows, openclip_rows, t5_rows

__all__ = ["COMPONENT_TABLES", "adopted", "tables_for"]

_CLIP_G_WIDTH = 1280  # both CLIPs have the same names; the width of the published ones tells them apart


def _table(
    name: str, rows: tuple[Row, ...], layouts: tuple[str, ...], layers: Mapping[str, str] | None = None, flags: tuple[str, ...] = ()
) -> Table:
    """The table of one component, before whose keys nothing stands; `layers` is what its blocks are called in each layout."""
    bare: Mapping[str, tuple[str, ...]] = dict.fromkeys(layouts, ("",))
    component = Component(name, rows, bare, layers)
    return Table(
        family=name, layouts=layouts, rows=rows_of((component,)), depth_stems=component.depth_stems(), flags=flags,
        aliases=VAE_ALIASES, prefixes={name: bare}, drops=DROPS,
    )  # fmt: skip


_LAYERS = {"diffusers": "text_model.encoder.layers"}

COMPONENT_TABLES: dict[str, Table] = {
    "clip_l": _table("clip_l", clip_rows("clip_l", projection=True, optional=True), ("diffusers",), _LAYERS, ("clip_l.projects",)),
    "clip_g": _table("clip_g", openclip_rows("clip_g"), ("sgm", "diffusers"), {"sgm": "transformer.resblocks", **_LAYERS}),
    "t5": _table("t5", t5_rows("t5"), ("diffusers",), {"diffusers": "encoder.block"}),
    "vae": _table("vae", autoencoder_rows(quantised=True, optional=True), ("ldm", "diffusers"), flags=("vae.quantised",)),
}


def tables_for(checkpoint: Checkpoint) -> tuple[Table, ...]:
    """The tables of components that a file's keys can be those of; of the two CLIPs the one of that width."""
    embedding = checkpoint.tensors.get("text_model.embeddings.token_embedding.weight")
    if embedding is None:
        return tuple(COMPONENT_TABLES.values())
    other = "clip_l" if embedding.shape[-1:] == (_CLIP_G_WIDTH,) else "clip_g"
    return tuple(table for name, table in COMPONENT_TABLES.items() if name != other)


def adopted(bound: Bound, table: Table) -> Bound | None:
    """A component's own file as that component of a whole model's family; None where the family has none of these tensors."""
    spec = {tensor.name: tensor for tensor in table.expand(bound.dims, {bound.family})} if bound.family in table.components else {}
    if spec.keys() != bound.spec.keys():
        return None
    return replace(bound, family=table.family, layout=table.layouts[0], spec=spec)
