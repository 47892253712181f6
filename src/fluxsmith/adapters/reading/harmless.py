"""Keys that mean nothing for any weight: each is left out by a rule that has a name, never silently.

What is told by its name, and modules that are all zero (a trainer's text encoder that was not trained).
"""

import re
from collections.abc import Collection, Mapping

from fluxsmith.io.numbers import read_bytes
from fluxsmith.io.views import View

__all__ = ["harmless_names", "zero_modules"]

#: (regular expression of a key, what it is)
NAMES: tuple[tuple[str, str], ...] = (
    (r"^bundle_emb\.", "a textual inversion bundled with the adapter, which changes no weight"),
    (r"(^|[._])position_(embedding|ids)", "position numbers, which loaders make anew"),
    (r"(^|\.)_aux\.", "what a trainer kept for itself"),
    (r"\.reshape_weight$", "the shape of a widened weight, which its factors have, too"),
    (r"(^|[._])logit_scale$", "a scale that only CLIP's own training uses"),
)

ZERO = "all zero, changes nothing"

# A module changes nothing where one of these is zero: its delta is a product with it, or it alone.
_FACTORS = re.compile(
    r"\.(lora_up\.weight|lora_down\.weight|lora_[AB](\.[^.]+)?\.weight|lora\.(up|down)\.weight|hada_w[12]_[ab]|lokr_w[12](_[ab])?|diff|diff_b)$"
)


def harmless_names(keys: Collection[str]) -> dict[str, str]:
    """Of keys that no dialect explains those that are known to mean nothing, each with what it is."""
    return {key: what for key in keys for pattern, what in NAMES if re.search(pattern, key)}


def zero_modules(tensors: Mapping[str, View], keys: Collection[str]) -> dict[str, str]:
    """Of keys that have no home those of modules that change nothing, told by their values: key -> reason.

    Keys of one module are those with the same text before the last parts that name its factors.
    """
    modules: dict[str, list[str]] = {}
    for key in keys:
        modules.setdefault(_stem(key), []).append(key)
    still = [members for members in modules.values() if any(_FACTORS.search(key) and is_zero(tensors[key]) for key in members)]
    # A bias beside a weight that is zero may not be: it is a module of its own.
    return {key: ZERO for members in still for key in members if not key.endswith(("bias", "diff_b")) or is_zero(tensors[key])}


def is_zero(view: View) -> bool:
    """Whether every stored byte of a view is zero (a negative zero counts as a value)."""
    return not any(read_bytes(view))


def _stem(key: str) -> str:
    found = _FACTORS.search(key)
    return key[: found.start()] if found else key.rpartition(".")[0]
