"""`fluxsmith adapter`: what is done with adapter files alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import click

from fluxsmith.cli.main import LazyGroup

__all__ = ["SUBCOMMANDS", "command"]

#: Command -> (module under fluxsmith.cli, what it does), as in main.COMMANDS.
SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "inspect": ("adapter_inspect", "Show what an adapter is: dialect, algorithms, ranks, scale, blocks."),
    "convert": ("adapter_convert", "Write an adapter in another dialect, with the same delta."),
    "resize": ("adapter_resize", "Give an adapter another rank."),
    "merge": ("adapter_merge", "Merge adapters into one: their exact sum, or by any merge method."),
}


class AdapterGroup(LazyGroup):
    """The commands of `fluxsmith adapter`."""

    commands_by_name: ClassVar[Mapping[str, tuple[str, str]]] = SUBCOMMANDS


@click.group("adapter", cls=AdapterGroup)
def command() -> None:
    """Inspect, convert, resize or merge adapters: LoRA, LoKr, LoHa, DoRA and their kin, in any dialect.

    \b
    fluxsmith adapter inspect style.safetensors
    fluxsmith adapter convert style.safetensors -o style-diffusers.safetensors --to diffusers
    fluxsmith adapter resize style.safetensors -o small.safetensors --rank 8
    fluxsmith adapter merge style.safetensors subject.safetensors -o both.safetensors -w 0.8 -w 1
    """
