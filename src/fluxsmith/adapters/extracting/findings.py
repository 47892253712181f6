"""What became of deltas that were made modules: by tensor, and summed over blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["LEFT_OUT", "Finding", "blocks_of", "kept_share"]

LEFT_OUT = "left out"


@dataclass(frozen=True)
class Finding:
    """What became of one delta D (`algorithm` LEFT_OUT: it has no module): `energy` is ||D||^2, `residual` ||D - what the module means||^2.

    `noise` is the part of ||D||^2 that the rounding of the checkpoints is expected to make (None where their types do not
    say), `above` the number of kept singular values above those of such noise.
    """

    tensor: str
    stored: str
    block: str | None
    algorithm: str
    rank: int | None
    energy: float
    residual: float
    noise: float | None = None
    above: int | None = None


def blocks_of(findings: Sequence[Finding]) -> dict[str, dict[str, Any]]:
    """By block (or tensor outside of blocks): modules, largest rank, the share of ||D|| that was kept, ||D||, ||what is
    lost||, and of ||D||^2 the share that rounding is expected to have."""
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.block or finding.tensor.split(".")[0], []).append(finding)
    return {name: _summary(group) for name, group in groups.items()}


def kept_share(energy: float, residual: float) -> float:
    """The share of the Frobenius norm that is kept, sqrt(1 - ||lost||^2 / ||D||^2), as the rank rule `energy` counts it."""
    return max(1 - residual / energy, 0.0) ** 0.5 if energy else 1.0


def _summary(group: Sequence[Finding]) -> dict[str, Any]:
    energy, residual = sum(f.energy for f in group), sum(f.residual for f in group)
    noises = [f.noise for f in group if f.noise is not None]
    return {
        "modules": sum(f.algorithm != LEFT_OUT for f in group), "rank": max((f.rank or 0 for f in group), default=0),
        "kept": round(kept_share(energy, residual), 6),
        "norm": float(f"{energy**0.5:.6g}"), "residual": float(f"{residual**0.5:.6g}"),
        "noise": round(min(sum(noises) / energy, 1.0), 6) if noises and energy else None,
    }  # fmt: skip
