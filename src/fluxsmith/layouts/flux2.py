"""FLUX.2 (dev, klein 4B, klein 9B): no biases, SwiGLU, and one modulation for all blocks of a kind.

Canonical names are those of Black Forest Labs' own files. In diffusers (`Flux2Transformer2DModel`) only the qkv of
double blocks is split; that of single blocks stays one matrix with both halves of the MLP. The halves of the last
layer's modulation change places, as in FLUX.1. M is the width of the MLP, of which SwiGLU has two.
"""

from fluxsmith.layouts.flux1 import DEPTHS, attention_rows
from fluxsmith.layouts.table import Row, Table, linear, scale

__all__ = ["FLUX2"]

_T = "time_guidance_embed"
_S, _SD = "single_blocks.{single}", "single_transformer_blocks.{single}"


def _matrix(stem: str, rows: str, cols: str, diffusers: str, *, segments: str = "", tags: str = "", optional: str | None = None) -> Row:
    return linear(stem, rows, cols, bias=False, segments=segments, tags=tags, optional=optional, diffusers=diffusers)


def _double_rows(stream: str, context: bool) -> list[Row]:
    """The rows of one stream (`img` or `txt`) of a double block."""
    bfl, ff = f"double_blocks.{{double}}.{stream}", "transformer_blocks.{double}.ff" + "_context" * context
    return [
        *attention_rows(stream, context, bias=False),
        _matrix(f"{bfl}_mlp.0", "M M", "H", f"{ff}.linear_in", tags="mlp"),
        _matrix(f"{bfl}_mlp.2", "H", "M", f"{ff}.linear_out", tags="mlp"),
    ]


_ROWS = (
    _matrix("time_in.in_layer", "H", "T", f"{_T}.timestep_embedder.linear_1"),
    _matrix("time_in.out_layer", "H", "H", f"{_T}.timestep_embedder.linear_2"),
    _matrix("guidance_in.in_layer", "H", "T", f"{_T}.guidance_embedder.linear_1", tags="guidance", optional="guidance"),
    _matrix("guidance_in.out_layer", "H", "H", f"{_T}.guidance_embedder.linear_2", tags="guidance", optional="guidance"),
    *(
        _matrix(f"{name}.lin", " ".join("H" * parts), "H", f"{name}.linear", tags="modulation")
        for name, parts in (("double_stream_modulation_img", 6), ("double_stream_modulation_txt", 6), ("single_stream_modulation", 3))
    ),
    _matrix("img_in", "H", "in", "x_embedder"),
    _matrix("txt_in", "H", "ctx", "context_embedder"),
    *_double_rows("img", context=False),
    *_double_rows("txt", context=True),
    _matrix(f"{_S}.linear1", "H H H M M", "H", f"{_SD}.attn.to_qkv_mlp_proj", segments="q k v mlp mlp"),
    _matrix(f"{_S}.linear2", "H", "H M", f"{_SD}.attn.to_out"),
    scale(f"{_S}.norm.query_norm", "D", tags="qk_norm", diffusers=f"{_SD}.attn.norm_q"),
    scale(f"{_S}.norm.key_norm", "D", tags="qk_norm", diffusers=f"{_SD}.attn.norm_k"),
    linear(
        "final_layer.adaLN_modulation.1", "H H", "H", bias=False, tags="modulation",
        order={"diffusers": (1, 0)}, diffusers="norm_out.linear",
    ),
    _matrix("final_layer.linear", "out", "H", "proj_out"),
)  # fmt: skip

_DIFFUSERS_ORDER = (
    *(f"{_T}.{name}_embedder.linear_{i}" for name in ("timestep", "guidance") for i in (1, 2)),
    "double_stream_modulation_img.linear", "double_stream_modulation_txt.linear", "single_stream_modulation.linear",
    "x_embedder", "context_embedder",
    *(f"transformer_blocks.{{double}}.{stem}" for stem in (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.norm_q", "attn.norm_k", "attn.to_out.0", "attn.norm_added_q",
        "attn.norm_added_k", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
        "ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out",
    )),
    *(f"{_SD}.attn.{stem}" for stem in ("to_qkv_mlp_proj", "norm_q", "norm_k", "to_out")),
    "norm_out.linear", "proj_out",
)  # fmt: skip

FLUX2 = Table(
    family="flux2",
    layouts=("bfl", "diffusers"),
    rows=_ROWS,
    depth_stems=DEPTHS,
    order={"diffusers": _DIFFUSERS_ORDER},
    flags=("guidance",),
    signature="single_stream_modulation.",
    suffixes={"diffusers": {"scale": "weight"}},
    aliases={"query_norm.weight": "query_norm.scale", "key_norm.weight": "key_norm.scale"},
)
