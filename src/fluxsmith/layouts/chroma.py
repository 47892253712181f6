"""Chroma: the blocks of FLUX.1 without any modulation layers, which one small network makes for all of them.

Canonical names are those of its own files. In diffusers the layers of that network are called linear_1 and linear_2
(`ChromaTransformer2DModel`). Keys contain the word `guidance`, but no guidance value is embedded.

Dims beside those of FLUX.1: A width of that network, N its input channels; approximator is its depth.
"""

from fluxsmith.layouts.flux1 import DEPTHS, blocks_in_order, double_rows, single_rows
from fluxsmith.layouts.table import Table, linear, scale

__all__ = ["CHROMA"]

_G = "distilled_guidance_layer"
_L, _N = f"{_G}.layers.{{approximator}}", f"{_G}.norms.{{approximator}}"

CHROMA = Table(
    family="chroma",
    layouts=("bfl", "diffusers"),
    rows=(
        linear(f"{_G}.in_proj", "A", "N", tags="modulation"),
        linear(f"{_L}.in_layer", "A", "A", tags="modulation", diffusers=f"{_L}.linear_1"),
        linear(f"{_L}.out_layer", "A", "A", tags="modulation", diffusers=f"{_L}.linear_2"),
        scale(_N, "A", tags="modulation"),
        linear(f"{_G}.out_proj", "H", "A", tags="modulation"),
        linear("txt_in", "H", "ctx", diffusers="context_embedder"),
        linear("img_in", "H", "in", diffusers="x_embedder"),
        *double_rows("img", context=False),
        *double_rows("txt", context=True),
        *single_rows(),
        linear("final_layer.linear", "out", "H", diffusers="proj_out"),
    ),
    depth_stems={**DEPTHS, "approximator": dict.fromkeys(("bfl", "diffusers"), f"{_G}.layers")},
    blocks=("double", "single"),
    order={
        "diffusers": (
            f"{_G}.in_proj", f"{_L}.linear_1", f"{_L}.linear_2", _N, f"{_G}.out_proj",
            "context_embedder", "x_embedder", *blocks_in_order(), "proj_out",
        )
    },
    signature="distilled_guidance_layer.",
    suffixes={"diffusers": {"scale": "weight"}},
    aliases={"query_norm.weight": "query_norm.scale", "key_norm.weight": "key_norm.scale"},
)  # fmt: skip
