from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fluxsmith.errors import UsageError
from fluxsmith.generation.euler import draw_noise, sample, time_steps
from fluxsmith.pocket.captions import encode
from fluxsmith.pocket.checkpoints import load_checkpoint
from fluxsmith.pocket.digits import GRID

CAPTIONS = ["seven", "inverted two", "handwritten three", "sideways nine"]
SEEDS = [11, 12, 13, 14]


class StraightPaths:
    """A stand-in whose velocity leads every noise straight to the image `target`; its text decides nothing."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, target: Tensor) -> None:
        self.config = SimpleNamespace(guidance_embeds=False, in_channels=target.shape[-1])
        self.target = target
        self.batches: list[int] = []

    def __call__(self, *, hidden_states: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        self.batches.append(len(hidden_states))
        return ((hidden_states - self.target) / timestep[:, None, None],)


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (7, 1.0), (4, 3.0)])
def test_straight_paths_are_followed_exactly(steps: int, shift: float) -> None:
    target = torch.linspace(-1, 1, 64).reshape(16, 4)
    latents = sample(StraightPaths(target), encode(["seven"] * 2), [1, 2], grid=GRID, steps=steps, shift=shift)
    assert torch.allclose(latents, target.expand(2, 16, 4), atol=1e-5)


def test_times_go_from_noise_to_image() -> None:
    assert time_steps(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert time_steps(2, shift=3.0).tolist() == [1.0, 0.75, 0.0]


@pytest.mark.parametrize("name", ["schnell", "dev"])
def test_a_seed_gives_one_image_alone_or_in_a_batch(name: str) -> None:
    transformer = load_checkpoint(name)
    guidance = 2.0 if transformer.config.guidance_embeds else None
    together = sample(transformer, encode(CAPTIONS), SEEDS, grid=GRID, steps=4, guidance=guidance)
    for index, seed in enumerate(SEEDS):
        alone = sample(transformer, encode([CAPTIONS[index]]), [seed], grid=GRID, steps=4, guidance=guidance)
        assert torch.allclose(alone[0], together[index], atol=1e-4)  # sums in another order, nothing else
    assert (together[0] - together[1]).abs().max() > 0.1


def test_noise_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    assert torch.equal(draw_noise([5, 6], 16, 4)[1], draw_noise([6], 16, 4)[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_cfg_steers_from_negative_to_positive() -> None:
    transformer = load_checkpoint("base")
    positive, negative = encode(CAPTIONS), encode([""] * 4)
    plain = sample(transformer, positive, SEEDS, grid=GRID, steps=1)
    unconditional = sample(transformer, negative, SEEDS, grid=GRID, steps=1)
    guided = sample(transformer, positive, SEEDS, grid=GRID, steps=1, cfg=3.0, negative=negative)
    assert torch.allclose(guided, unconditional + 3.0 * (plain - unconditional), atol=1e-4)


def test_cfg_of_one_costs_one_forward() -> None:
    stand_in = StraightPaths(torch.zeros(16, 4))
    sample(stand_in, encode(CAPTIONS), SEEDS, grid=GRID, steps=2, cfg=1.0, negative=encode([""] * 4))
    assert stand_in.batches == [4, 4]


def test_guidance_must_fit_the_transformer() -> None:
    with pytest.raises(UsageError, match="embeds guidance"):
        sample(load_checkpoint("dev"), encode(["two"]), [0], grid=GRID, steps=1)
    with pytest.raises(UsageError, match="embeds no guidance"):
        sample(load_checkpoint("schnell"), encode(["two"]), [0], grid=GRID, steps=1, guidance=3.0)


def test_cfg_needs_a_negative() -> None:
    with pytest.raises(UsageError, match="negative"):
        sample(load_checkpoint("base"), encode(["two"]), [0], grid=GRID, steps=1, cfg=2.0)


def test_one_seed_for_each_conditioning() -> None:
    with pytest.raises(ValueError, match="2 seeds for 1"):
        sample(load_checkpoint("base"), encode(["two"]), [0, 1], grid=GRID, steps=1)
