"""PCB-Merging against its definition, written once more over whole tensors in float64 (the authors' for one tensor)."""

import torch
from torch import Tensor

import fluxsmith as fs
from support.in_memory import as_models, merged, tuned

OUTLIERS = 0.0001


def by_definition(base: Tensor, models: list[Tensor], density: float) -> Tensor:
    """Du et al. 2024, with scores below zero never counted, and magnitudes from zero in small tensors."""
    deltas = torch.stack([(model - base).double().flatten() for model in models])
    count, size = deltas.shape
    ordered = deltas.abs().sort(1).values
    low = ordered[:, int(size * OUTLIERS)] if size >= 1 / OUTLIERS else torch.zeros(count)
    high = ordered[:, int(size * (1 - OUTLIERS) - 1)]
    magnitude = torch.stack([row.clamp(float(a), float(b)) for row, a, b in zip(deltas.abs(), low, high, strict=True)])
    within = ((magnitude - low[:, None]) / (high - low)[:, None]) ** 2
    score = (torch.exp(count * within) * torch.tanh(deltas * deltas.sum(0))).clamp(min=0)
    limit = score.sort(1).values[:, int(size * (1 - density))][:, None]
    largest = score.max(1, keepdim=True).values
    balance = ((score - limit) / (largest - limit)).clamp(min=0)
    merged_delta = (deltas.sign() * magnitude * balance).sum(0) / balance.sum(0).clamp(min=1e-12)
    return base + merged_delta.reshape(base.shape)


def test_pcb_is_the_definition() -> None:
    inputs = tuned(3, seed=41, spread=0.3, shapes={"small": (30, 40), "large": (120, 130)})
    for density in (0.1, 0.4):
        found = merged(fs.pcb(*as_models(inputs), density=density))
        for name in found:
            base, *models = (tensors[name] for tensors in inputs)
            assert torch.allclose(found[name].double(), by_definition(base, models, density), atol=1e-4), name


def test_what_only_one_model_wants_loses_to_what_two_agree_on() -> None:
    """Three elements: all agree, one against two, and one alone; only the strongest third of each model counts."""
    inputs = [{"x": torch.tensor(row)} for row in ([0.0, 0, 0], [3.0, 1, 0], [3.0, 1, 0], [3.0, -1, 1])]
    assert merged(fs.pcb(*as_models(inputs), density=0.3))["x"][1:].tolist() == [0, 0]


def test_a_scalar_is_merged() -> None:
    inputs = [{"x": torch.tensor(value)} for value in (1.0, 2.0, 4.0)]
    assert abs(float(merged(fs.pcb(*as_models(inputs)))["x"]) - 3) < 1e-6
