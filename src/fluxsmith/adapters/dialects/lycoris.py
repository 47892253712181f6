"""The `lycoris` package around any model, as SimpleTuner and older ai-toolkit use it: `lycoris_transformer_blocks_0_attn_to_q.lokr_w1`.

Names are those of the wrapped model with `_` for `.`. The scale is alpha over rank; of a LoKr of two whole matrices it is
1, whatever alpha says (10000, 9984 in bf16, or infinity). SimpleTuner puts what it created into the header (`lycoris_config`).
"""

from fluxsmith.adapters.dialects.base import MAIN, Dialect
from fluxsmith.adapters.dialects.writing import Writing

__all__ = ["LYCORIS"]

LYCORIS = Dialect(
    name="lycoris",
    title="LyCORIS, SimpleTuner, ai-toolkit (older LoKr)",
    prefixes={MAIN: ("lycoris_",)},
    joined=True,
    vocabulary="lycoris",
    writing=Writing("diffusers", ("lora", "dora", "loha", "lokr", "diff", "oft", "boft", "ia3", "glora")),
)
