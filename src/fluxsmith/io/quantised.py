"""Quantised checkpoints: tensors that mean nothing without others become views of their values, all else is refused.

Headers and a few small tensors (JSON) are read, no weights.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fluxsmith.io.checkpoint import Checkpoint, Quantised
from fluxsmith.io.codecs import bitsandbytes, scaled_fp8, torchao
from fluxsmith.io.codecs.recognition import Recognised, not_read
from fluxsmith.io.views import View

__all__ = ["QUANTISED", "decoded"]

_SCHEMES = (bitsandbytes, torchao, scaled_fp8)

# Schemes that are not read, by keys that only they have. (name, pattern)
QUANTISED: tuple[tuple[str, str], ...] = (
    ("bitsandbytes int8", r"\.SCB$"),
    ("quanto", r"\.weight\._(data|scale)$"),
    ("GPTQ or AWQ", r"\.(qzeros|g_idx)$"),
    ("nunchaku", r"\.(qweight|wscales)$"),
)


def decoded(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with every quantised weight as one view of its values, under the weight's own name.

    One that is not quantised, or that has been opened as such (GGUF), comes back as it is. Raises IncompatibleError
    for a scheme that is not read, and where a weight and its scales are not both there.
    """
    if checkpoint.quantised is not None:
        return checkpoint
    for name, pattern in QUANTISED:
        keys = [key for key in checkpoint.tensors if re.search(pattern, key)]
        if keys:
            raise not_read(checkpoint, name, keys[0], len(keys))
    found = [recognised for scheme in _SCHEMES if (recognised := scheme.recognise(checkpoint)) is not None]
    return _with_values(checkpoint, found) if found else checkpoint


def _with_values(checkpoint: Checkpoint, found: list[Recognised]) -> Checkpoint:
    """The views of all recognised weights in the places of their stored tensors, in the order of the file."""
    names = {stored: name for one in found for stored, name in one.replaces.items()}
    views = {key: view for one in found for key, view in one.views.items()}
    sides = {key for one in found for key in one.sides}
    dropped = {key: reason for one in found for key, reason in one.dropped.items()}
    tensors: dict[str, View] = {}
    for key, view in checkpoint.tensors.items():
        name = names.get(key, key)
        if key not in sides and key not in dropped:
            tensors[name] = views.get(name, view)
    quantised = Quantised(" and ".join(one.scheme for one in found), checkpoint.tensors, tuple(sorted(sides)), dropped)
    parts = {part: _plain_config(config) for part, config in checkpoint.parts.items()}
    config = _plain_config(checkpoint.config) if checkpoint.config is not None else None
    return replace(checkpoint, tensors=tensors, quantised=quantised, config=config, parts=parts)


def _plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json of the values: what it says of the quantisation is no longer true of what is made of them."""
    return {key: value for key, value in config.items() if key != "quantization_config"}
