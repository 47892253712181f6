"""Components as files of their own: a text encoder or a VAE alone, as ComfyUI and Black Forest Labs offer them.

clip_l.safetensors, t5xxl.safetensors    transformers' names, layout `diffusers`
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
from fluxsmith.layouts.text_encoders import clip_rows, t5_rows

__all__ = ["COMPONENT_TABLES", "adopted", "tables_for"]

_CLIP_G_WIDTH = 1280  # both CLIPs have the same names; the width of the published ones tells them apart


def _table(name: str, rows: tuple[Row, ...], layers: str | None, layouts: tuple[str, ...], flags: tuple[str, ...] = ()) -> Table:
    bare: Mapping[str, tuple[str, ...]] = dict.fromkeys(layouts, ("",))
    component = Component(name, rows, bare, dict.fromkeys(layouts, layers) if layers else None)
    return Table(
        family=name, layouts=layouts, rows=rows_of((component,)), depth_stems=component.depth_stems(), flags=flags,
        aliases=VAE_ALIASES, prefixes={name: bare}, drops=DROPS,
    )  # fmt: skip


def _clip(name: str) -> Table:
    rows = clip_rows(name, projection=True, optional=True)
    return _table(name, rows, "text_model.encoder.layers", ("diffusers",), (f"{name}.projects",))


COMPONENT_TABLES: dict[str, Table] = {
    "clip_l": _clip("clip_l"),
    "clip_g": _clip("clip_g"),
    "t5": _table("t5", t5_rows("t5"), "encoder.block", ("diffusers",)),
    "vae": _table("vae", autoencoder_rows(quantised=True, optional=True), None, ("ldm", "diffusers"), ("vae.quantised",)),
}


def tables_for(checkpoint: Checkpoint) -> tuple[Table, ...]:
    """The tables of components that a file's keys can be those of; of the two CLIPs the one of that width."""
    embedding = checkpoint.tensors.get("text_model.embeddings.token_embedding.weight")
    other = "clip_l" if embedding is not None and embedding.shape[-1:] == (_CLIP_G_WIDTH,) else "clip_g"
    return tuple(table for name, table in COMPONENT_TABLES.items() if name != other)


def adopted(bound: Bound, table: Table) -> Bound | None:
    """A component's own file as that component of a whole model's family; None where the family has none of these tensors."""
    spec = {tensor.name: tensor for tensor in table.expand(bound.dims, {bound.family})} if bound.family in table.components else {}
    if spec.keys() != bound.spec.keys():
        return None
    return replace(bound, family=table.family, layout=table.layouts[0], spec=spec)
