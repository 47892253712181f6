"""FLUX.1 (schnell, dev, Krea, Kontext, Fill, Canny/Depth, Flux-mini, ...): any depth and width, one table.

Canonical names are those of Black Forest Labs' own files. Facts: in diffusers qkv and linear1 are split, and the two
halves of the last layer's modulation stand in the other order (BFL: shift, scale; diffusers: scale, shift).

ComfyUI's all-in-one file also holds two text encoders and a VAE, which the other layouts do not have here: their
keys have prefixes of their own, whereas the transformer may stand after any, as in its own files.

Dims: H width, M width of the MLP, D width of a head, in/out channels of a patch, ctx and vec widths of the two text
embeddings, T width of the sinusoidal time embedding; double and single are depths, guidance is 1 where it is embedded.
"""

from fluxsmith.layouts.autoencoder import autoencoder_rows
from fluxsmith.layouts.components import Component, rows_of
from fluxsmith.layouts.table import Row, Table, linear, scale
from fluxsmith.layouts.text_encoders import clip_rows, t5_rows

__all__ = ["DEPTHS", "FLUX1", "attention_rows", "blocks_in_order", "double_rows", "single_rows"]


def double_rows(stream: str, context: bool) -> list[Row]:
    """The rows of one stream (`img` or `txt`) of a double block, without its modulation."""
    bfl, ff = f"double_blocks.{{double}}.{stream}", "transformer_blocks.{double}.ff" + "_context" * context
    return [
        *attention_rows(stream, context),
        linear(f"{bfl}_mlp.0", "M", "H", tags="mlp", diffusers=f"{ff}.net.0.proj"),
        linear(f"{bfl}_mlp.2", "H", "M", tags="mlp", diffusers=f"{ff}.net.2"),
    ]


def attention_rows(stream: str, context: bool, *, bias: bool = True) -> list[Row]:
    """The attention of one stream of a double block: norms of q and k, the three projections in one, and the way out."""
    bfl, d = f"double_blocks.{{double}}.{stream}_attn", "transformer_blocks.{double}.attn"
    qkv = "add_q_proj add_k_proj add_v_proj" if context else "to_q to_k to_v"
    norm, out = ("norm_added", "to_add_out") if context else ("norm", "to_out.0")
    return [
        scale(f"{bfl}.norm.query_norm", "D", tags="qk_norm", diffusers=f"{d}.{norm}_q"),
        scale(f"{bfl}.norm.key_norm", "D", tags="qk_norm", diffusers=f"{d}.{norm}_k"),
        linear(f"{bfl}.qkv", "H H H", "H", segments="q k v", bias=bias, diffusers=" ".join(f"{d}.{p}" for p in qkv.split())),
        linear(f"{bfl}.proj", "H", "H", bias=bias, diffusers=f"{d}.{out}"),
    ]


def single_rows() -> list[Row]:
    """The rows of a single block, without its modulation."""
    bfl, d = "single_blocks.{single}", "single_transformer_blocks.{single}"
    split = f"{d}.attn.to_q {d}.attn.to_k {d}.attn.to_v {d}.proj_mlp"
    return [
        linear(f"{bfl}.linear1", "H H H M", "H", segments="q k v mlp", diffusers=split),
        linear(f"{bfl}.linear2", "H", "H M", diffusers=f"{d}.proj_out"),
        scale(f"{bfl}.norm.query_norm", "D", tags="qk_norm", diffusers=f"{d}.attn.norm_q"),
        scale(f"{bfl}.norm.key_norm", "D", tags="qk_norm", diffusers=f"{d}.attn.norm_k"),
    ]


def blocks_in_order(*, double_first: str = "", single_first: str = "") -> tuple[str, ...]:
    """Stems of all blocks in the order of the stock class's state dict; words in `..._first` stand before the others."""
    double = (
        *double_first.split(), "attn.norm_q", "attn.norm_k", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
        "attn.norm_added_q", "attn.norm_added_k", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
        "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
    )  # fmt: skip
    single = (
        *single_first.split(), "proj_mlp", "proj_out",
        "attn.norm_q", "attn.norm_k", "attn.to_q", "attn.to_k", "attn.to_v",
    )  # fmt: skip
    return (
        *(f"transformer_blocks.{{double}}.{stem}" for stem in double),
        *(f"single_transformer_blocks.{{single}}.{stem}" for stem in single),
    )


#: What the lists of blocks are called in both layouts.
DEPTHS = {
    "double": {"bfl": "double_blocks", "diffusers": "transformer_blocks"},
    "single": {"bfl": "single_blocks", "diffusers": "single_transformer_blocks"},
}

_T = "time_text_embed"


def _modulation(stem: str, parts: int, diffusers: str) -> Row:
    return linear(stem, " ".join("H" * parts), "H", tags="modulation", diffusers=diffusers)


_ROWS = (
    linear("time_in.in_layer", "H", "T", diffusers=f"{_T}.timestep_embedder.linear_1"),
    linear("time_in.out_layer", "H", "H", diffusers=f"{_T}.timestep_embedder.linear_2"),
    linear("guidance_in.in_layer", "H", "T", tags="guidance", optional="guidance", diffusers=f"{_T}.guidance_embedder.linear_1"),
    linear("guidance_in.out_layer", "H", "H", tags="guidance", optional="guidance", diffusers=f"{_T}.guidance_embedder.linear_2"),
    linear("vector_in.in_layer", "H", "vec", diffusers=f"{_T}.text_embedder.linear_1"),
    linear("vector_in.out_layer", "H", "H", diffusers=f"{_T}.text_embedder.linear_2"),
    linear("txt_in", "H", "ctx", diffusers="context_embedder"),
    linear("img_in", "H", "in", diffusers="x_embedder"),
    _modulation("double_blocks.{double}.img_mod.lin", 6, "transformer_blocks.{double}.norm1.linear"),
    *double_rows("img", context=False),
    _modulation("double_blocks.{double}.txt_mod.lin", 6, "transformer_blocks.{double}.norm1_context.linear"),
    *double_rows("txt", context=True),
    _modulation("single_blocks.{single}.modulation.lin", 3, "single_transformer_blocks.{single}.norm.linear"),
    *single_rows(),
    linear("final_layer.adaLN_modulation.1", "H H", "H", tags="modulation", order={"diffusers": (1, 0)}, diffusers="norm_out.linear"),
    linear("final_layer.linear", "out", "H", diffusers="proj_out"),
)

# The order of stock FluxTransformer2DModel.state_dict(), by which shards are cut.
_DIFFUSERS_ORDER = (
    f"{_T}.timestep_embedder.linear_1", f"{_T}.timestep_embedder.linear_2",
    f"{_T}.guidance_embedder.linear_1", f"{_T}.guidance_embedder.linear_2",
    f"{_T}.text_embedder.linear_1", f"{_T}.text_embedder.linear_2",
    "context_embedder", "x_embedder",
    *blocks_in_order(double_first="norm1.linear norm1_context.linear", single_first="norm.linear"),
    "norm_out.linear", "proj_out",
)  # fmt: skip


def _beside() -> tuple[Component, ...]:
    """The components of an all-in-one file beside the transformer. ComfyUI keeps CLIP's projection, others leave it out."""

    def placed(name: str, rows: tuple[Row, ...], prefix: str, layers: str | None = None, *others: str) -> Component:
        return Component(name, rows, {"bfl": (prefix, *others), "diffusers": ()}, {"bfl": layers} if layers else None)

    return (
        placed(
            "clip_l", clip_rows("clip_l", projection=True, optional=True), "text_encoders.clip_l.transformer.", "text_model.encoder.layers"
        ),
        placed("t5", t5_rows("t5"), "text_encoders.t5xxl.transformer.", "encoder.block"),
        placed("vae", autoencoder_rows(quantised=False), "vae.", None, "first_stage_model."),
    )


_BESIDE = _beside()

FLUX1 = Table(
    family="flux1",
    layouts=("bfl", "diffusers"),
    rows=(*_ROWS, *rows_of(_BESIDE)),
    depth_stems=DEPTHS | {symbol: stems for component in _BESIDE for symbol, stems in component.depth_stems().items()},
    order={"diffusers": _DIFFUSERS_ORDER},
    flags=("guidance", "clip_l.projects"),
    prefixes={component.name: component.prefixes for component in _BESIDE},
    drops=(
        (r"^text_encoders\..*position_ids$", "position numbers, which loaders make anew"),
        (r"^text_encoders\..*logit_scale$", "a scale that only CLIP's own training uses"),
        (r"^text_encoders\..*encoder\.embed_tokens\.weight$", "a second name of shared.weight"),
    ),
    suffixes={"diffusers": {"scale": "weight"}},
    # Recent ComfyUI saves BFL files with `query_norm.weight`; it is read, and written as `.scale`.
    aliases={"query_norm.weight": "query_norm.scale", "key_norm.weight": "key_norm.scale"},
)
