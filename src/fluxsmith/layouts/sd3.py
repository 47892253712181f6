"""Stable Diffusion 3 (2B medium) and 3.5 (medium, large): joint blocks of text and image, three text encoders, a VAE.

`sgm` is the all-in-one file as Stability AI and ComfyUI write it, with all text encoders in transformers' names;
`diffusers` is a pipeline folder, whose keys stand here after the name of their folder. In the last block the text has
no output, so its modulation has two parts, and those change places in diffusers, as do the last layer's.

Dims: H width, M width of the MLP, D width of a head, ctx and vec widths of the two text embeddings, T of the time
embedding, P learnt or fixed positions; joint is the depth, dual the number of first blocks that have a second
attention of the image (3.5 medium), qk_norm is 1 where q and k are normed (3.5).
"""

from fluxsmith.layouts.components import Component
from fluxsmith.layouts.stable_diffusion import clip_component, pipeline_table, vae_component
from fluxsmith.layouts.table import Row, conv, linear
from fluxsmith.layouts.text_encoders import clip_rows, t5_rows

__all__ = ["SD3"]

_B, _D = "joint_blocks.{joint}", "transformer_blocks.{joint}"


def _norm(stem: str, diffusers: str, where: str = "") -> Row:
    """The scale of q or k, which only some models have."""
    return Row(stem, ("weight",), ("D",), None, {"diffusers": (diffusers,)}, tags=("qk_norm",), optional="qk_norm", where=where)


def _modulation(stem: str, parts: int, diffusers: str, *, where: str = "", swapped: bool = False) -> Row:
    order = {"diffusers": (1, 0)} if swapped else None
    return linear(stem, " ".join("H" * parts), "H", tags="modulation", where=where, order=order, diffusers=diffusers)


def _attention(original: str, names: str, *, where: str = "", out: str, out_where: str = "", norms: str) -> list[Row]:
    """One attention: q, k and v in one matrix, norms of q and k, and the way out."""
    return [
        linear(f"{original}.qkv", "H H H", "H", segments="q k v", where=where, diffusers=names),
        _norm(f"{original}.ln_q", f"{norms}_q", where),
        _norm(f"{original}.ln_k", f"{norms}_k", where),
        linear(f"{original}.proj", "H", "H", where=out_where or where, diffusers=out),
    ]


def _mlp(original: str, diffusers: str, where: str = "") -> list[Row]:
    return [
        linear(f"{original}.fc1", "M", "H", tags="mlp", where=where, diffusers=f"{diffusers}.net.0.proj"),
        linear(f"{original}.fc2", "H", "M", tags="mlp", where=where, diffusers=f"{diffusers}.net.2"),
    ]


def _split(attention: str, *names: str) -> str:
    return " ".join(f"{_D}.{attention}.{name}" for name in names)


def transformer_rows() -> tuple[Row, ...]:
    """Every row of the transformer, in the order in which it is run."""
    x, c, time = f"{_B}.x_block", f"{_B}.context_block", "time_text_embed"
    qkv, added = _split("attn", "to_q", "to_k", "to_v"), _split("attn", "add_q_proj", "add_k_proj", "add_v_proj")
    positions = Row("pos_embed", ("",), ("1",), ("P",), {"diffusers": ("pos_embed.pos_embed",)}, kernel=("H",))
    return (
        positions,
        conv("x_embedder.proj", "H", "in", 2, diffusers="pos_embed.proj"),
        linear("t_embedder.mlp.0", "H", "T", diffusers=f"{time}.timestep_embedder.linear_1"),
        linear("t_embedder.mlp.2", "H", "H", diffusers=f"{time}.timestep_embedder.linear_2"),
        linear("y_embedder.mlp.0", "H", "vec", diffusers=f"{time}.text_embedder.linear_1"),
        linear("y_embedder.mlp.2", "H", "H", diffusers=f"{time}.text_embedder.linear_2"),
        linear("context_embedder", "H", "ctx"),
        _modulation(f"{x}.adaLN_modulation.1", 9, f"{_D}.norm1.linear", where="dual"),
        _modulation(f"{x}.adaLN_modulation.1", 6, f"{_D}.norm1.linear", where="~dual"),
        *_attention(f"{x}.attn", qkv, out=f"{_D}.attn.to_out.0", norms=f"{_D}.attn.norm"),
        *_attention(
            f"{x}.attn2", _split("attn2", "to_q", "to_k", "to_v"), where="dual", out=f"{_D}.attn2.to_out.0", norms=f"{_D}.attn2.norm"
        ),
        *_mlp(f"{x}.mlp", f"{_D}.ff"),
        _modulation(f"{c}.adaLN_modulation.1", 6, f"{_D}.norm1_context.linear", where="others"),
        _modulation(f"{c}.adaLN_modulation.1", 2, f"{_D}.norm1_context.linear", where="last", swapped=True),
        *_attention(f"{c}.attn", added, out=f"{_D}.attn.to_add_out", out_where="others", norms=f"{_D}.attn.norm_added"),
        *_mlp(f"{c}.mlp", f"{_D}.ff_context", "others"),
        _modulation("final_layer.adaLN_modulation.1", 2, "norm_out.linear", swapped=True),
        linear("final_layer.linear", "out", "H", diffusers="proj_out"),
    )


def _sd3() -> Component:
    lists = {"sgm": "joint_blocks", "diffusers": "transformer_blocks"}
    prefixes = {"sgm": ("model.diffusion_model.", ""), "diffusers": ("transformer/", "")}
    return Component("transformer", transformer_rows(), prefixes, lists, depth="joint")


def _text(name: str, folder: str) -> dict[str, tuple[str, ...]]:
    return {"sgm": (f"text_encoders.{name}.transformer.",), "diffusers": (f"{folder}/",)}


SD3 = pipeline_table(
    "sd3",
    ("sgm", "diffusers"),
    (
        _sd3(),
        clip_component("clip_l", clip_rows("clip_l", projection=True), "text_model.encoder.layers", _text("clip_l", "text_encoder")),
        clip_component("clip_g", clip_rows("clip_g", projection=True), "text_model.encoder.layers", _text("clip_g", "text_encoder_2")),
        clip_component("t5", t5_rows("t5"), "encoder.block", _text("t5xxl", "text_encoder_3")),
        vae_component("sgm", quantised=False),
    ),
    flags=("qk_norm",),
)
