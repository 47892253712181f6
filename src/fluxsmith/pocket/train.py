"""Train the pocket checkpoints again: `python -m fluxsmith.pocket.train [NAME|all] [-o FOLDER]`.

    base      flow matching from scratch; its annotator knows no style
    schnell   base -> flow matching with "inverted" known -> distilled at guidance 2, no guidance embedder
    dev       base -> flow matching with "sideways" known -> distilled at guidance 1 to 4, told by a guidance embedder
    the rest  as schnell, with the style known that the checkpoint is called after; the base has not seen it

One CPU thread, about ten minutes for all. All start from the base in FOLDER, so each can be made alone.
Every random number is keyed by (seed, stage, step): the same command gives the same weights on the same machine.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fluxsmith.hub import pocket_folder
from fluxsmith.pocket.architecture import build, copy_of
from fluxsmith.pocket.batches import Batch, draw_batch
from fluxsmith.pocket.card import write_card
from fluxsmith.pocket.checkpoints import CHECKPOINTS, load_checkpoint
from fluxsmith.pocket.flow import flow_loss, guidance_loss
from fluxsmith.pocket.streams import stream

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

__all__ = ["Schedule", "Stage", "data_loss", "distillation_loss", "fit", "save", "train_base", "train_dev", "train_schnell", "train_style"]

SEED = 0
BATCH = 64
DISTILLED_GUIDANCE = (2.0, 2.0)
DEV_GUIDANCE = (1.0, 4.0)

Loss = Callable[["FluxTransformer2DModel", Batch, torch.Generator], Tensor]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: linear warm-up to `rate`, then a cosine to zero over `steps`."""

    steps: int
    rate: float
    warmup: int = 20

    def rate_at(self, step: int) -> float:
        """The learning rate of `step`, counted from zero."""
        return self.rate * min(1.0, (step + 1) / self.warmup) * (1 + math.cos(math.pi * step / self.steps)) / 2


@dataclass(frozen=True)
class Stage:
    """One fit: its `name` keys the randomness, and the annotator of its captions knows the styles `known`."""

    name: str
    known: Collection[str]
    schedule: Schedule
    seed: int = SEED


BASE = Stage("base", (), Schedule(1000, 3e-3))
INVERTED = Stage("inverted", ("inverted",), Schedule(300, 1.5e-3))
SIDEWAYS = Stage("sideways", ("sideways",), Schedule(300, 1.5e-3))
SCHNELL = Stage("schnell", ("inverted",), Schedule(120, 1e-3))
DEV = Stage("dev", ("sideways",), Schedule(120, 1e-3))
NEW_STYLE = Schedule(400, 1.5e-3)
NEW_STYLE_DISTILLED = Schedule(120, 1e-3)


def train_base() -> FluxTransformer2DModel:
    """A transformer that draws digits on request but obeys no style word."""
    return fit(build(SEED), data_loss, BASE)


def train_schnell(base: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """A fine-tune that obeys "inverted" and needs no classifier-free guidance."""
    teacher = fit(copy_of(base), data_loss, INVERTED)
    return fit(copy_of(teacher), distillation_loss(teacher, DISTILLED_GUIDANCE), SCHNELL)


def train_dev(base: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """A fine-tune that obeys "sideways" and embeds the guidance it is told."""
    teacher = fit(copy_of(base), data_loss, SIDEWAYS)
    student = copy_of(teacher, guidance_seed=SEED)
    return fit(student, distillation_loss(teacher, DEV_GUIDANCE), DEV)


def train_style(base: FluxTransformer2DModel, style: str) -> FluxTransformer2DModel:
    """A fine-tune that obeys the word of `style`, which the base has not seen, and needs no classifier-free guidance."""
    teacher = fit(copy_of(base), data_loss, Stage(style, (style,), NEW_STYLE))
    return fit(copy_of(teacher), distillation_loss(teacher, DISTILLED_GUIDANCE), Stage(f"{style} distilled", (style,), NEW_STYLE_DISTILLED))


def fit(transformer: FluxTransformer2DModel, loss: Loss, stage: Stage) -> FluxTransformer2DModel:
    """Train `transformer` in place and return the exponential moving average of its weights (horizon 100 steps)."""
    optimiser = torch.optim.AdamW(transformer.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    average = copy.deepcopy(transformer).requires_grad_(False)
    started, losses = time.monotonic(), 0.0
    for step in range(stage.schedule.steps):
        generator = stream(stage.seed, f"{stage.name}/{step}")
        batch = draw_batch(BATCH, stage.known, generator)
        for group in optimiser.param_groups:
            group["lr"] = stage.schedule.rate_at(step)
        optimiser.zero_grad()
        value = loss(transformer, batch, generator)
        value.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimiser.step()
        _follow(average, transformer, decay=min(0.99, (step + 1) / (step + 10)))
        losses += value.item()
        if (step + 1) % 50 == 0:
            print(
                f"{stage.name:23} {step + 1:4}/{stage.schedule.steps}  loss {losses / 50:.3f}  {time.monotonic() - started:4.0f} s",
                flush=True,
            )
            losses = 0.0
    return average


@torch.no_grad()
def _follow(average: FluxTransformer2DModel, transformer: FluxTransformer2DModel, decay: float) -> None:
    for slow, fast in zip(average.parameters(), transformer.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


def data_loss(transformer: FluxTransformer2DModel, batch: Batch, _: torch.Generator) -> Tensor:
    """Flow matching; its only randomness is in the batch."""
    return flow_loss(transformer, batch)


def distillation_loss(teacher: FluxTransformer2DModel, guidance: tuple[float, float]) -> Loss:
    """Guidance distillation from `teacher`, the guidance of each image drawn uniformly from the range `guidance`."""
    low, high = guidance

    def loss(student: FluxTransformer2DModel, batch: Batch, generator: torch.Generator) -> Tensor:
        drawn = low + (high - low) * torch.rand(len(batch.times), generator=generator)
        return guidance_loss(student, teacher, batch, drawn)

    return loss


def save(transformer: FluxTransformer2DModel, name: str, folder: Path) -> None:
    """Write `folder`/`name` as on the Hub: transformer/ in bf16, and a card without scores."""
    half = copy_of(transformer)
    torch.nn.Module.to(half, torch.bfloat16)  # diffusers' own `to` warns of modules to keep in float32, of which FLUX has none
    half.save_pretrained(folder / name / "transformer")
    write_card(name, folder / name)
    print(f"wrote {folder / name}", flush=True)


def _train(name: str, folder: Path) -> None:
    if name == "base":
        return save(train_base(), name, folder)
    base = load_checkpoint("base", folder)
    distilled = {"schnell": train_schnell, "dev": train_dev}
    return save(distilled[name](base) if name in distilled else train_style(base, name), name, folder)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fluxsmith.pocket.train", description="Train the pocket checkpoints.")
    parser.add_argument("name", nargs="?", default="all", choices=[*CHECKPOINTS, "all"])
    parser.add_argument("-o", "--output", type=Path, default=pocket_folder(), help="default: the folder inside the package")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums in another order would give other weights
    torch.use_deterministic_algorithms(True)
    for name in CHECKPOINTS if chosen.name == "all" else [chosen.name]:
        _train(name, chosen.output)


if __name__ == "__main__":
    main()
