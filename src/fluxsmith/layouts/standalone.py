"""Components as files of their own: a text encoder or a VAE alone, as ComfyUI and Black Forest Labs offer them.

clip_l.safetensors, t5xxl.safetensors    transformers' names, layout `diffusers`; CLIP's without `text_model.`, layout `bare`
clip_g.safetensors                       those, or OpenCLIP's as in SDXL's own file, layout `sgm`
ae.safetensors, vae.safetensors          the original names, layout `ldm`, or those of AutoencoderKL, layout `diffusers`

Families are called as the components are in the tables of whole models, and so are their canonical names
(`clip_l.text_model...`), so that they can take the place of those (`adopted`).
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.layouts.autoencoder import autoencoder_rows
from fluxsmith.layouts.binding import Bound
from fluxsmith.layouts.components import Component, rows_of
from fluxsmith.layouts.stable_diffusion import DROPS, VAE_ALIASES
from fluxsmith.layouts.table import Row, Table
from fluxsmith.layouts.text_encoders import clip_rows, openclip_rows, t5_rows

__all__ = ["COMPONENT_TABLES", "adopted", "tables_for"]

_CLIP_WIDTHS = {768: "clip_l", 1280: "clip_g"}


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
_BARE = {"bare": "encoder.layers"}


def _clip_rows(name: str) -> tuple[Row, ...]:
    """CLIP with or without a projection; transformers 5 writes it without the first word of its names."""
    rows = clip_rows(name, projection=True, optional=True)
    return tuple(replace(row, names={**row.names, "bare": (row.stem.removeprefix("text_model."),)}) for row in rows)


COMPONENT_TABLES: dict[str, Table] = {
    "clip_l": _table("clip_l", _clip_rows("clip_l"), ("diffusers", "bare"), _LAYERS | _BARE, ("clip_l.projects",)),
    "clip_g": _table("clip_g", openclip_rows("clip_g"), ("sgm", "diffusers"), {"sgm": "transformer.resblocks", **_LAYERS}),
    "t5": _table("t5", t5_rows("t5"), ("diffusers",), {"diffusers": "encoder.block"}),
    "vae": _table("vae", autoencoder_rows(quantised=True, optional=True), ("ldm", "diffusers"), flags=("vae.quantised",)),
}


def tables_for(checkpoint: Checkpoint, asked: Collection[str] = ()) -> tuple[Table, ...]:
    """The tables of components that a file's keys can be those of.

    Of the two CLIPs, which have the same names, that of its width; where the width is none of theirs, the one of those
    `asked` for, or CLIP-L.
    """
    embedding = checkpoint.tensors.get("text_model.embeddings.token_embedding.weight")
    if embedding is None:
        return tuple(COMPONENT_TABLES.values())
    meant = _CLIP_WIDTHS.get(embedding.shape[-1] if embedding.shape else 0, "clip_g" if "clip_g" in asked else "clip_l")
    return tuple(table for name, table in COMPONENT_TABLES.items() if name == meant or name not in _CLIP_WIDTHS.values())


def adopted(bound: Bound, table: Table) -> Bound | None:
    """A component's own file as that component of a whole model's family; None where the family has none of these tensors."""
    spec = {tensor.name: tensor for tensor in table.expand(bound.dims, {bound.family})} if bound.family in table.components else {}
    if spec.keys() != bound.spec.keys():
        return None
    return replace(bound, family=table.family, layout=table.layouts[0], spec=spec)
