"""The config.json of a diffusers folder, from the shapes of a model and from what an input's own config says.

Shapes give every width and depth. What weights do not show (rotary axes, epsilons) comes from an input's config where
there is one, else from the family's published models. Field names are those of the stock diffusers classes.
"""

from collections.abc import Callable, Mapping
from typing import Any

from fluxsmith.layouts.table import Dims

__all__ = ["diffusers_config", "rope_axes"]

Known = Mapping[str, Any]


def rope_axes(head: int) -> list[int]:
    """Rotary axes of a head of FLUX.1: 16, 56, 56 of 128, as in every published model; even numbers near that for others."""
    first = min((a for a in range(2, head, 2) if (head - a) % 4 == 0), key=lambda a: abs(a - head / 8), default=head)
    return [first, (head - first) // 2, (head - first) // 2]


def _flow_transformer(dims: Dims, known: Known) -> dict[str, Any]:
    """What FLUX.2 and Chroma share."""
    return {
        "attention_head_dim": dims["D"],
        "in_channels": dims["in"],
        "joint_attention_dim": dims["ctx"],
        "num_attention_heads": dims["H"] // dims["D"],
        "num_layers": dims["double"],
        "num_single_layers": dims["single"],
        "out_channels": None if dims["in"] == dims["out"] else dims["out"],
        "patch_size": known.get("patch_size") or 1,
    }


def _flux2(dims: Dims, known: Known) -> dict[str, Any]:
    return {
        "_class_name": "Flux2Transformer2DModel",
        **_flow_transformer(dims, known),
        "axes_dims_rope": known.get("axes_dims_rope") or [dims["D"] // 4] * 4,
        "eps": known.get("eps") or 1e-6,
        "guidance_embeds": bool(dims.get("guidance")),
        "mlp_ratio": dims["M"] / dims["H"],
        "rope_theta": known.get("rope_theta") or 2000,
        "timestep_guidance_channels": dims["T"],
    }


def _chroma(dims: Dims, known: Known) -> dict[str, Any]:
    return {
        "_class_name": "ChromaTransformer2DModel",
        **_flow_transformer(dims, known),
        "approximator_hidden_dim": dims["A"],
        "approximator_layers": dims["approximator"],
        "approximator_num_channels": dims["N"],
        "axes_dims_rope": known.get("axes_dims_rope") or rope_axes(dims["D"]),
    }


_CONFIGS: dict[str, Callable[[Dims, Known], dict[str, Any]]] = {"flux2": _flux2, "chroma": _chroma}


def diffusers_config(family: str, dims: Dims, known: Known) -> dict[str, Any] | None:
    """The config.json of a family's transformer; None for a family without one here. `known` is an input's config."""
    make = _CONFIGS.get(family)
    return make(dims, known) if make else None
