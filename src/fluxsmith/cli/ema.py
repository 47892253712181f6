"""`fluxsmith ema`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fluxsmith.cli.options import output_options, run_options, settings_from, talk_options, with_options
from fluxsmith.errors import UsageError

if TYPE_CHECKING:
    from fluxsmith.recipes.expressions import Expression

__all__ = ["command"]


@click.command("ema")
@click.argument("checkpoints", metavar="CHECKPOINT...", nargs=-1, required=True)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="A folder, or one file ending in .safetensors or .gguf."
)
@click.option("--alpha", "alphas", multiple=True, metavar="A,...", help="Share of the newest in e = lerp(e, m, A), from 0 to 1.")
@click.option("--sigma-rel", "sigmas", multiple=True, metavar="S,...", help="Width of Karras' power profile, a share of the run to 0.2886.")
@output_options
@run_options
@talk_options
def command(**arguments: Any) -> None:
    """Average the checkpoints of a run, given from the oldest to the newest.

    Several values make a sweep: one output for each, OUT_alpha0.9.safetensors and so on.

    \b
    fluxsmith ema run/step-*.safetensors -o ema.safetensors --alpha 0.9
    fluxsmith ema run/step-*.safetensors -o ema.safetensors --alpha 0.2,0.4,0.6,0.8,0.9
    fluxsmith ema run/checkpoint-* -o averages/ema --sigma-rel 0.05 --sigma-rel 0.1
    """
    from fluxsmith.cli.running import run_and_show
    from fluxsmith.recipes.recipe import Recipe

    a = arguments
    wishes = _wishes(a["checkpoints"], _numbers("alpha", a["alphas"]), _numbers("sigma-rel", a["sigmas"]))
    settings = settings_from(a["device"], a["threads"], a["memory"], a["allow_nonfinite"])
    for label, wish in wishes:
        output = _labelled(a["output"], label) if len(wishes) > 1 else a["output"]
        recipe = with_options(Recipe(wish, title=output.stem), a["layout"], a["dtype"], a["shard_size"], a["unquantised"])
        run_and_show(
            recipe, output, settings, a["console"], verb="ema", resume=a["resume"], force=a["force"],
            allow_pickle=a["allow_pickle"], sha256=a["sha256"],
        )  # fmt: skip


def _numbers(flag: str, texts: Sequence[str]) -> list[float]:
    """The numbers of an option that may be given several times, or with commas."""
    found: list[float] = []
    for word in (word for text in texts for word in text.split(",")):
        try:
            number = float(word)
        except ValueError:
            raise UsageError("usage.number", f"`{word}` of --{flag} is not a number", fix=f"--{flag} 0.1,0.2") from None
        if f"{number:g}" in {f"{other:g}" for other in found}:  # as _labelled names the outputs
            raise UsageError("usage.number", f"--{flag} has {number:g} twice", fix="name every value once")
        found.append(number)
    return found


def _wishes(references: Sequence[str], alphas: Sequence[float], sigmas: Sequence[float]) -> list[tuple[str, Expression]]:
    """A label and an expression for every average that is wanted; raises UsageError where none is."""
    from fluxsmith.methods.ema import ema
    from fluxsmith.recipes.expressions import model

    if not alphas and not sigmas:
        raise UsageError("usage.no-average", "say how the checkpoints are to be averaged", fix="--alpha 0.9, or --sigma-rel 0.1")
    if len(references) < 2:
        raise UsageError("usage.one-checkpoint", "an average needs two checkpoints or more", fix="name them from the oldest to the newest")
    names = [model(reference).name for reference in references]
    numbered = len(set(names)) < len(names)
    models = [
        model(reference, name=f"{name}_{i}" if numbered else name)
        for i, (reference, name) in enumerate(zip(references, names, strict=True), 1)
    ]
    wishes: list[tuple[str, Expression]] = [(f"alpha{alpha:g}", ema(*models, alpha=alpha)) for alpha in alphas]
    return wishes + [(f"sigma{sigma:g}", ema(*models, profile="power", sigma_rel=sigma)) for sigma in sigmas]


def _labelled(output: Path, label: str) -> Path:
    """`ema.safetensors` as `ema_alpha0.9.safetensors`, the folder `ema` as `ema_alpha0.9`."""
    if output.suffix in (".safetensors", ".gguf"):
        return output.with_name(f"{output.stem}_{label}{output.suffix}")
    return output.with_name(f"{output.name}_{label}")
