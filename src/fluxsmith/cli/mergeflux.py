"""`fluxsmith mergeflux`: MergeFlux's weighted merge, with its flags; and what it shares with `mergeflux-delta`.

Flags such as `--models A B C` take any number of values, which click's cannot: argparse reads them, as in MergeFlux.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fluxsmith.cli.console import Console
from fluxsmith.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from fluxsmith.io.checkpoint import Checkpoint
    from fluxsmith.recipes.mergeflux import Translation

__all__ = ["FlagParser", "ListCommand", "add_common_flags", "command", "merge_translated", "open_headers"]

PRECISIONS = ["float", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2"]


class FlagParser(argparse.ArgumentParser):
    """argparse with this program's errors; `own` takes the flags that MergeFlux lacks."""

    def __init__(self, name: str, summary: str, examples: str) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(f"fluxsmith {name}", description=summary, epilog=f"examples:\n{examples}", formatter_class=form)
        self.own = self.add_argument_group("not in MergeFlux")

    def error(self, message: str) -> NoReturn:
        """Raise UsageError in place of printing and leaving."""
        raise UsageError("usage.flags", message, fix=f"{self.prog} --help")

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The flags of a command line; an unknown one is an error that names the closest known one."""
        found, unknown = self.parse_known_args(list(arguments))
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            hint = did_you_mean(unknown[0].split("=")[0], flags)
            raise UsageError("usage.flags", f"`{unknown[0]}` is not a flag of {self.prog}", fix=hint or f"{self.prog} --help")
        return found


class ListCommand(click.Command):
    """A command of the program whose flags a FlagParser reads."""

    def __init__(self, name: str, parser: Callable[[], FlagParser], run: Callable[[argparse.Namespace], object]) -> None:
        super().__init__(name, callback=run, help=parser().description)
        self._parser = parser

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the flags; what they say is the callback's argument."""
        ctx.params["flags"] = self._parser().read(args)
        return []

    def get_help(self, ctx: click.Context) -> str:
        return self._parser().format_help()


def add_common_flags(parser: FlagParser) -> None:
    """The flags that both scripts have, then those that only this program has."""
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], help="where to compute (default: cuda where there is one, else cpu)")
    add("--precision", choices=PRECISIONS, default="float", help="type of the calculation; fp8 means float (default: float)")
    add("--saving_precision", choices=PRECISIONS, default="bf16", help="type of the output (default: bf16)")
    add("--save-metadata", action="store_true", help="write MergeFlux's metadata too (fluxsmith's are always written)")
    add("-v", "--verbose", action="store_true", help="also show the numbers that are used")
    more = parser.own.add_argument
    more("--force", action="store_true", help="replace an existing output")
    more("--resume", action="store_true", help="go on with an interrupted run")
    more("--threads", type=int, metavar="N", help="threads (default: one per core, at most 16)")
    more("--memory", metavar="SIZE", help="limit of memory, such as 2GB")
    more("--allow-nonfinite", action="store_true", help="let NaN and infinite values through")
    more("--allow-pickle", action="store_true", help="read .ckpt/.pt/.bin files (tensors only, nothing is run)")
    more("--sha256", action="store_true", help="also print the sha256 of the tensor bytes")
    more("--json", action="store_true", help="data as JSON on stdout")
    more("-q", "--quiet", action="store_true", help="only errors and warnings")


def open_headers(references: Sequence[str], flags: argparse.Namespace) -> list[Checkpoint]:
    """The inputs by their headers."""
    from fluxsmith.engine.merging import opener

    open_once = opener(download=False, allow_pickle=flags.allow_pickle)
    return [open_once(reference) for reference in references]


def merge_translated(translation: Translation, flags: argparse.Namespace, verb: str) -> None:
    """Run what a script's flags mean, after saying what its user may not expect."""
    from fluxsmith.cli.options import settings_from
    from fluxsmith.cli.running import run_and_show

    if flags.threads is not None and flags.threads < 1:
        raise UsageError("usage.flags", f"--threads {flags.threads}: at least one thread is needed")
    console = Console(flags.json, flags.quiet, flags.verbose)
    for note in translation.notes:
        console.warn(note)
    if flags.verbose:
        for line in translation.story:
            console.talk(line)
    settings = settings_from(_device(flags.device, console), flags.threads, flags.memory, flags.allow_nonfinite)
    name: str = flags.output
    output = Path(name if name.endswith(".safetensors") else f"{name}.safetensors")
    run_and_show(
        translation.recipe, output, settings, console, verb=verb,
        resume=flags.resume, force=flags.force, allow_pickle=flags.allow_pickle, sha256=flags.sha256,
    )  # fmt: skip


def _device(wanted: str | None, console: Console) -> str:
    """The device asked for, if it is there; else cuda where there is one, as MergeFlux takes cuda by default."""
    from fluxsmith.engine.devices import open_device

    if wanted is not None:
        return open_device(wanted)
    import torch

    found = "cuda" if torch.cuda.is_available() else "cpu"
    console.talk(f"device  {found}" + (" (no cuda device here)" if found == "cpu" else ""))
    return found


_SUMMARY = """\
MergeFlux's weighted merge (mergeflux.py): an average of checkpoints whose ratios may ramp over the block numbers.
Ratios of at most 1e-6, also negative ones, mean that a model is not used there; the others are scaled to sum to 1.
Names in the output are without `model.diffusion_model.`; `.safetensors` is appended to --output where it lacks it."""

_EXAMPLES = """\
  fluxsmith mergeflux --models model_A.safetensors model_B.safetensors --output merged_50-50.safetensors

  from A to B between blocks 4 and 12, half of each outside of blocks:
  fluxsmith mergeflux --models model_A.safetensors model_B.safetensors --output merged_A-to-B.safetensors \\
      --base_ratios 0.5 0.5 --start_block 4 --start_ratios 1.0 0.0 --end_block 12 --end_ratios 0.0 1.0 --save-metadata"""


def _parser() -> FlagParser:
    parser = FlagParser("mergeflux", _SUMMARY, _EXAMPLES)
    add = parser.add_argument
    add("--models", nargs="+", required=True, metavar="FILE", help="the checkpoints to merge")
    add("--output", required=True, metavar="FILE", help="the merged checkpoint")
    add("--base_ratios", nargs="+", type=float, metavar="R", help="ratios outside of blocks, one per model, sum 1 (default: equal)")
    add("--start_ratios", nargs="+", type=float, metavar="R", help="ratios at the start of the transition (default: --base_ratios)")
    add("--end_ratios", nargs="+", type=float, metavar="R", help="ratios at its end (default: --base_ratios)")
    add("--start_block", type=int, metavar="N", help="block number where the transition starts (default: the first found)")
    add("--end_block", type=int, metavar="N", help="block number where it ends (default: the last found)")
    add_common_flags(parser)
    return parser


def _run(flags: Any) -> None:
    from fluxsmith.recipes.mergeflux import WeightedMerge, weighted_recipe

    wish = WeightedMerge(
        flags.models, flags.base_ratios, flags.start_ratios, flags.end_ratios, flags.start_block, flags.end_block,
        flags.precision, flags.saving_precision, flags.save_metadata,
    )  # fmt: skip
    merge_translated(weighted_recipe(wish, open_headers(wish.models, flags)), flags, "mergeflux")


command = ListCommand("mergeflux", _parser, _run)
