"""Text encoders as components: CLIP in transformers' names, CLIP in OpenCLIP's names, and the encoder of T5."""

from dataclasses import replace

from fluxsmith.layouts.table import Row, linear, norm

__all__ = ["clip_rows", "openclip_rows", "t5_rows"]


def _plain(stem: str, suffix: str, rows: str, cols: str, diffusers: str = "") -> Row:
    """A row without bias whose last word is `suffix`; an empty one for a tensor that has no last word."""
    return replace(linear(stem, rows, cols, bias=False, diffusers=diffusers or stem), suffixes=(suffix,))


def clip_rows(name: str, *, text: str = "text_model.", projection: bool = False, optional: bool = False) -> tuple[Row, ...]:
    """A CLIP text encoder as transformers names it, `text` before all but the projection; widths are called `name.width`.

    An `optional` projection is one that some files have and others leave out, told by the flag `name.projects`.
    """
    w, mlp, layer = f"{name}.width", f"{name}.mlp", f"{text}encoder.layers.{{{name}}}"
    rows = [
        _plain(f"{text}embeddings.token_embedding", "weight", f"{name}.vocabulary", w),
        _plain(f"{text}embeddings.position_embedding", "weight", f"{name}.positions", w),
        *(linear(f"{layer}.self_attn.{p}_proj", w, w, tags="attention") for p in ("q", "k", "v", "out")),
        norm(f"{layer}.layer_norm1", w),
        linear(f"{layer}.mlp.fc1", mlp, w),
        linear(f"{layer}.mlp.fc2", w, mlp),
        norm(f"{layer}.layer_norm2", w),
        norm(f"{text}final_layer_norm", w),
    ]
    if projection:
        rows.append(
            replace(linear("text_projection", f"{name}.projection", w, bias=False), optional=f"{name}.projects" if optional else None)
        )
    return tuple(rows)


def openclip_rows(name: str) -> tuple[Row, ...]:
    """A CLIP text encoder as OpenCLIP names it: q, k and v in one matrix, and a projection that is applied from the right,
    so that transformers' matrix is its transpose.
    """
    w, mlp = f"{name}.width", f"{name}.mlp"
    block, layer = f"transformer.resblocks.{{{name}}}", f"text_model.encoder.layers.{{{name}}}"
    qkv = " ".join(f"{layer}.self_attn.{p}_proj" for p in "qkv")
    fused = linear(f"{block}.attn.in_proj_", f"{w} {w} {w}", w, segments="q k v", tags="attention", diffusers=qkv)
    projection = _plain("text_projection", "", w, f"{name}.projection", diffusers="text_projection.weight")
    return (
        _plain("token_embedding", "weight", f"{name}.vocabulary", w, diffusers="text_model.embeddings.token_embedding"),
        _plain("positional_embedding", "", f"{name}.positions", w, diffusers="text_model.embeddings.position_embedding.weight"),
        norm(f"{block}.ln_1", w, diffusers=f"{layer}.layer_norm1"),
        fused,
        linear(f"{block}.attn.out_proj", w, w, tags="attention", diffusers=f"{layer}.self_attn.out_proj"),
        norm(f"{block}.ln_2", w, diffusers=f"{layer}.layer_norm2"),
        linear(f"{block}.mlp.c_fc", mlp, w, diffusers=f"{layer}.mlp.fc1"),
        linear(f"{block}.mlp.c_proj", w, mlp, diffusers=f"{layer}.mlp.fc2"),
        norm("ln_final", w, diffusers="text_model.final_layer_norm"),
        replace(projection, forms={"diffusers": "transposed"}),
    )


def t5_rows(name: str) -> tuple[Row, ...]:
    """The encoder of T5 1.1: no biases, a gated MLP, and distances that only the first block embeds."""
    w, inner, mlp, block = f"{name}.width", f"{name}.attention", f"{name}.mlp", f"encoder.block.{{{name}}}"
    distances = _plain("encoder.block.0.layer.0.SelfAttention.relative_attention_bias", "weight", f"{name}.distances", f"{name}.heads")
    return (
        _plain("shared", "weight", f"{name}.vocabulary", w),
        *(linear(f"{block}.layer.0.SelfAttention.{p}", inner, w, bias=False, tags="attention") for p in "qkv"),
        linear(f"{block}.layer.0.SelfAttention.o", w, inner, bias=False, tags="attention"),
        replace(distances, block=f"{name}.0"),
        replace(norm(f"{block}.layer.0.layer_norm", w), suffixes=("weight",)),
        linear(f"{block}.layer.1.DenseReluDense.wi_0", mlp, w, bias=False),
        linear(f"{block}.layer.1.DenseReluDense.wi_1", mlp, w, bias=False),
        linear(f"{block}.layer.1.DenseReluDense.wo", w, mlp, bias=False),
        replace(norm(f"{block}.layer.1.layer_norm", w), suffixes=("weight",)),
        replace(norm("encoder.final_layer_norm", w), suffixes=("weight",)),
    )
