"""ai-toolkit for FLUX.1: `transformer.transformer_blocks.0.attn.to_q.lora_A.weight`, as diffusers names them.

There is no alpha and the scale is 1: it is folded into the factors. A LoKr (`transformer.….lokr_w1`) has an alpha, that of
two whole matrices 9999999999, which is infinite in fp16 and means nothing. Older LoKr files are LyCORIS' own. The header
names the program.
"""

from dataclasses import replace

from fluxsmith.adapters.dialects.diffusers import DIFFUSERS_PIPELINE
from fluxsmith.adapters.dialects.writing import Writing
from fluxsmith.adapters.reading.sidecars import Sidecar, software_of

__all__ = ["AI_TOOLKIT"]


def _claims(sidecar: Sidecar) -> bool:
    return software_of(sidecar) == "ai-toolkit"


AI_TOOLKIT = replace(
    DIFFUSERS_PIPELINE,
    name="ai-toolkit",
    title="ai-toolkit (FLUX.1)",
    claims=_claims,
    remark=lambda modules, sidecar: "",
    writing=Writing("diffusers", ("lora",), "nowhere"),
)
