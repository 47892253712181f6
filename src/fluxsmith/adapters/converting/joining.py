"""Modules of neighbouring rows as one module with the same delta (docs/adapters.md, what conversion does).

    LoRA    [up_1 down_1]   [s_1 up_1          ] [down_1]         where all downs are equal they stay one:
            [up_2 down_2] = [          s_2 up_2] [down_2]         up = [s_1 up_1; s_2 up_2], the rank stays r
    LoHa    the same for w1 and w2: (a b) * (c d) by rows
    diff, bias: the rows of all, one after another; DoRA by rows: as LoRA, with the magnitudes one after another

Rows that no module has are zero. The scales of the parts become one; where they differ, their ratio is multiplied into
`up` (or `w1_a`), in fp32 where its type cannot hold the product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from fluxsmith.adapters.tensors import ModuleTensors
from fluxsmith.adapters.writing.scales import scaled_exactly

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fluxsmith.adapters.module import Target

__all__ = ["Part", "join"]

#: A module, or None where there is none, and how many rows it is of.
Part = tuple["ModuleTensors | None", int]


def join(parts: Sequence[Part], target: Target) -> ModuleTensors | None:
    """One module of `target` from parts of its rows, in order; None where their algorithm cannot be joined exactly."""
    modules = [module for module, _ in parts if module is not None]
    algorithms = {module.algorithm for module in modules}
    joiner = _JOINERS.get(next(iter(algorithms))) if len(algorithms) == 1 else None
    if joiner is None or any(module.factors.keys() != modules[0].factors.keys() for module in modules):
        return None
    scales = [module.settings.get("scale", 1.0) for module in modules]
    scale = next(filter(None, scales), 1.0)
    factors = joiner(parts, [own / scale for own in scales])
    if factors is None:
        return None
    settings = {name: value for name, value in modules[0].settings.items() if name != "alpha"}
    return ModuleTensors(target, modules[0].algorithm, factors, {**settings, "scale": scale})


Factors = Mapping[str, "Tensor"]


def _join_lora(parts: Sequence[Part], ratios: Sequence[float]) -> Factors | None:
    modules = [module for module, _ in parts if module is not None]
    if set(modules[0].factors) == {"up"}:  # a bias
        return _join_difference(parts, ratios)
    magnitudes = _magnitudes(parts)
    if magnitudes is None or not modules[0].factors.keys() <= {"up", "down", *magnitudes} or modules[0].factors["up"].dim() > 2:
        return None
    ups, downs = _scaled(parts, ratios, "up"), [module.factors["down"] for module in modules]
    if all(same(down, downs[0]) for down in downs):
        return {"up": _stack(ups, [rows for _, rows in parts]), "down": downs[0], **magnitudes}
    return {"up": _block_diagonal(ups, [rows for _, rows in parts]), "down": _cat(downs), **magnitudes}


def _join_loha(parts: Sequence[Part], ratios: Sequence[float]) -> Factors | None:
    modules = [module for module, _ in parts if module is not None]
    if not modules[0].factors.keys() <= {"w1_a", "w1_b", "w2_a", "w2_b"}:
        return None
    heights = [rows for _, rows in parts]
    first, second = _scaled(parts, ratios, "w1_a"), _scaled(parts, [1.0] * len(ratios), "w2_a")
    return {
        "w1_a": _block_diagonal(first, heights), "w1_b": _cat([module.factors["w1_b"] for module in modules]),
        "w2_a": _block_diagonal(second, heights), "w2_b": _cat([module.factors["w2_b"] for module in modules]),
    }  # fmt: skip


def _join_difference(parts: Sequence[Part], ratios: Sequence[float]) -> Factors | None:
    (role,) = next(module for module, _ in parts if module is not None).factors
    return {role: _stack(_scaled(parts, ratios, role), [rows for _, rows in parts])}


def _join_rows(parts: Sequence[Part], ratios: Sequence[float]) -> Factors | None:
    """Factors that go by rows one after another; all others are the same in every part, or there is no joining."""
    modules = [module for module, _ in parts if module is not None]
    first = modules[0]
    roles = first.rules.by_rows(first.shapes, first.settings)
    if roles is None or len(modules) < len(parts) or any(ratio != 1 for ratio in ratios):
        return None
    found: dict[str, Tensor] = {}
    for role, factor in first.factors.items():
        if role in roles:
            found[role] = _cat([module.factors[role] for module in modules])
        elif all(same(module.factors[role], factor) for module in modules):
            found[role] = factor
        else:
            return None
    return found


_JOINERS: dict[str, Callable[[Sequence[Part], Sequence[float]], Factors | None]] = {
    "lora": _join_lora, "loha": _join_loha, "diff": _join_difference, "replace": _join_rows, "ia3": _join_rows, "glora": _join_rows,
}  # fmt: skip


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two factors are equal, in type, shape and every value."""
    return one.dtype == other.dtype and one.equal(other)


def _magnitudes(parts: Sequence[Part]) -> Factors | None:
    """The magnitudes of a DoRA by rows, one after another; none of a plain module, None where they cannot be joined."""
    modules = [module for module, _ in parts if module is not None]
    role = next((role for role in ("magnitude", "dora_scale") if role in modules[0].factors), None)
    if role is None:
        return {}
    by_rows = all(role in (module.rules.by_rows(module.shapes, module.settings) or ()) for module in modules)
    return {role: _cat([module.factors[role] for module in modules])} if by_rows and len(modules) == len(parts) else None


def _scaled(parts: Sequence[Part], ratios: Sequence[float], role: str) -> list[Tensor | None]:
    """A factor of every part, times its ratio; None where there is no module."""
    left = iter(ratios)
    return [None if module is None else scaled_exactly(module.factors[role], next(left)) for module, _ in parts]


def _stack(factors: Sequence[Tensor | None], heights: Sequence[int]) -> Tensor:
    pattern = next(factor for factor in factors if factor is not None)
    return _cat([pattern.new_zeros(rows, *pattern.shape[1:]) if f is None else f for f, rows in zip(factors, heights, strict=True)])


def _block_diagonal(factors: Sequence[Tensor | None], heights: Sequence[int]) -> Tensor:
    """Every factor in rows and columns of its own; rows without a factor are zero."""
    present = [factor for factor in factors if factor is not None]
    width, dtype = sum(factor.shape[1] for factor in present), _widest(present)
    joined = present[0].new_zeros(sum(heights), width, dtype=dtype)
    top = left = 0
    for factor, rows in zip(factors, heights, strict=True):
        if factor is not None:
            joined[top : top + rows, left : left + factor.shape[1]] = factor
            left += factor.shape[1]
        top += rows
    return joined


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    """One after another; in fp32 where their types differ."""
    import torch

    dtype = _widest(tensors)
    return torch.cat([tensor.to(dtype) for tensor in tensors])


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    import torch

    types = {tensor.dtype for tensor in tensors}
    return types.pop() if len(types) == 1 else torch.float64 if torch.float64 in types else torch.float32
