"""kohya's `split_qkv` files: fused factors that were trained apart, told by their values.

q, k and v (and the MLP of linear1) have a down of rank r each, stacked to [n*r, H], and the up is block-diagonal. Their
alpha was left at its value for r, so that the trained scale was alpha/r, but every loader applies alpha/(n*r): so do we.
"""

from fluxsmith.adapters.module import Module
from fluxsmith.io.numbers import read_bytes

__all__ = ["split_qkv_note"]

#: Module -> how many parts it has.
_PARTS = {"img_attn.qkv.weight": 3, "txt_attn.qkv.weight": 3, "linear1.weight": 4}
NOTE = "trained with q, k and v apart (split_qkv): alpha is divided by the joined rank, as all loaders do, and not by that of a part"


def split_qkv_note(module: Module) -> str:
    """A note where a LoRA's up is block-diagonal; looks at two rows of every part, and only where the rank can be a sum."""
    parts = next((n for name, n in _PARTS.items() if module.target.tensor.endswith(name)), 0)
    up = module.factors.get("up")
    if module.algorithm != "lora" or not parts or up is None or up.shape[1] % parts or up.shape[1] < parts:
        return ""
    return NOTE if _is_block_diagonal(module, parts) else ""


def _is_block_diagonal(module: Module, parts: int) -> bool:
    """Whether the first and last row of every part are zero outside of that part's columns, and not all zero inside."""
    up, (rows, width) = module.factors["up"], module.target.shape[:2]
    starts = [part * width for part in range(parts)]  # q, k and v are square, the MLP has the rest
    for part, (start, stop) in enumerate(zip(starts, [*starts[1:], rows], strict=True)):
        for row in (start, stop - 1):
            stored = read_bytes(up.rows(row, row + 1))
            size = len(stored) // parts
            inside = stored[part * size : (part + 1) * size]
            if any(stored[: part * size]) or any(stored[(part + 1) * size :]) or not any(inside):
                return False
    return True
