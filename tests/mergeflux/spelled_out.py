"""What MergeFlux computes, said once more in plain torch on whole tensors, without any of fluxsmith."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["TYPES", "Tensors", "delta_merge", "keep_largest", "same_bits", "weighted_merge"]

Tensors = Mapping[str, Tensor]
TYPES = {
    "float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2,
}  # fmt: skip


def bare(tensors: Tensors) -> dict[str, Tensor]:
    """One leading `model.diffusion_model.` taken off every key, and nothing else."""
    return {key.removeprefix("model.diffusion_model."): tensor for key, tensor in tensors.items()}


def block_of(key: str) -> int | None:
    """The number of a block; double and single blocks share the numbers."""
    found = re.search(r"(single_blocks|double_blocks)\.(\d+)\.", key)
    return int(found[2]) if found else None


def weighted_merge(
    models: Sequence[Tensors],
    base: Sequence[float] | None = None,
    start: Sequence[float] | None = None,
    end: Sequence[float] | None = None,
    blocks: tuple[int | None, int | None] = (None, None),
    compute: torch.dtype = torch.float32,
    save: torch.dtype = torch.bfloat16,
) -> dict[str, Tensor]:
    """mergeflux.py: the average of the models that have a tensor and a ratio above 1e-6 for it."""
    models = [bare(model) for model in models]
    keys = {key for model in models for key in model}
    numbers = {n for n in map(block_of, keys) if n is not None} or {-1}
    first = min(numbers) if blocks[0] is None else blocks[0]
    last = max(numbers) if blocks[1] is None else blocks[1]
    base = base or [1 / len(models)] * len(models)
    out: dict[str, Tensor] = {}
    for key in keys:
        ratios = ratios_of(block_of(key), base, start or base, end or base, first, last)
        parts = [(model[key], ratio) for model, ratio in zip(models, ratios, strict=True) if key in model and ratio > 1e-6]
        if len(parts) == 1:
            out[key] = parts[0][0].to(save)  # no detour through the compute type
        elif parts:
            total = 0.0
            for _, ratio in parts:
                total += ratio
            value = parts[0][0].to(compute) * (parts[0][1] / total)
            for tensor, ratio in parts[1:]:
                value = torch.add(value, tensor.to(compute), alpha=ratio / total)
            out[key] = value.to(save)
    return out


def ratios_of(
    block: int | None, base: Sequence[float], start: Sequence[float], end: Sequence[float], first: int, last: int
) -> Sequence[float]:
    """base outside of blocks; start before the first block, end behind the last; between them a line in fp32."""
    if block is None:
        return base
    if block < first or (block == first == last):
        return start
    if block > last:
        return end
    alpha = (block - first) / (last - first)
    return ((1 - alpha) * torch.tensor(start, dtype=torch.float32) + alpha * torch.tensor(end, dtype=torch.float32)).tolist()


def delta_merge(
    base: Tensors,
    models: Sequence[Tensors],
    prune: str = "magnitude",
    merge: str = "disjoint_merge",
    density: float = 0.5,
    weights: Sequence[float] | None = None,
    sign: str = "total",
    compute: torch.dtype = torch.float32,
    save: torch.dtype = torch.bfloat16,
) -> dict[str, Tensor]:
    """mergeflux-delta.py without random pruning: every tensor of the base plus the combined changes of the models."""
    factors = torch.tensor(weights or [1.0] * len(models), dtype=compute)
    models = [bare(model) for model in models]
    out: dict[str, Tensor] = {}
    for key, stored in bare(base).items():
        start = stored.to(compute)
        deltas = [model[key].to(compute) - start if key in model else torch.zeros_like(start) for model in models]
        if prune == "magnitude":
            deltas = [keep_largest(delta, density) for delta in deltas]
        weighted = torch.stack(deltas) * factors.view(-1, *(1 for _ in start.shape))
        out[key] = (start + combine(weighted, merge, sign)).to(save)
    return out


def keep_largest(delta: Tensor, density: float) -> Tensor:
    """The int(density * count) largest magnitudes and all that tie with the smallest of them; the rest is zero."""
    count = int(density * delta.numel())
    if density >= 1:
        return delta
    if density <= 0 or count == 0:
        return torch.zeros_like(delta)
    least = delta.abs().flatten().sort(descending=True).values[count - 1]
    return delta * (delta.abs() >= least)


def combine(weighted: Tensor, merge: str, sign: str) -> Tensor:
    """The sum, the mean, or the mean of those that agree with the elected sign (0 elects plus) over their number."""
    if merge == "sum":
        return weighted.sum(dim=0)
    if merge == "mean":
        return weighted.mean(dim=0)
    votes = weighted if sign == "total" else weighted.sign()
    elected = torch.where(votes.sum(dim=0) >= 0, 1, -1)
    agree = weighted.sign() == elected
    return (weighted * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1.0)


def same_bits(found: Tensor, expected: Tensor) -> bool:
    """Equal type, shape and bytes: +0 and -0 differ."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    return torch.equal(found.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8))
