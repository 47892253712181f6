"""`fluxsmith extract`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fluxsmith.cli.adapter_files import check_target, parts_from
from fluxsmith.cli.console import Console, bytes_text, table
from fluxsmith.cli.options import read_wish, settings_from, talk_options
from fluxsmith.cli.rank_options import rank_options, rule_from
from fluxsmith.errors import UsageError

if TYPE_CHECKING:
    from fluxsmith.engine.extraction import Extracted, Wish
    from fluxsmith.recipes.recipe import Recipe

__all__ = ["command", "run_extraction", "show_extracted"]

_OF_LAYOUT = {"bfl": "kohya", "diffusers": "diffusers"}


@click.command("extract")
@click.argument("tuned", metavar="TUNED|FORMULA")
@click.argument("base", metavar="BASE", required=False)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The adapter to write.")
@click.option("-m", "--model", "models", multiple=True, metavar="NAME=REF", help="A model of the formula or recipe.")
@click.option("--guidance", metavar="POLICY", help="Where the two differ in guidance layers: drop, keep, bake(3.5), from(NAME).")
@click.option("--algo", type=click.Choice(["lora", "lokr", "full"]), default="lora", show_default=True, help="What deltas become.")
@rank_options
@click.option("--factor", type=int, metavar="F", help="LoKr: w1 is F by F (default: the size that loses least for what it stores).")
@click.option("--layout", type=click.Choice(["bfl", "diffusers"]), help="Fused tensors (bfl) or q, k, v apart (diffusers).")
@click.option("--dialect", metavar="NAME", help="kohya, diffusers, comfy, lycoris, ... (fluxsmith list dialects; default: by the layout).")
@click.option("--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), help="Type of factors (default: fp16; fp32 with --full-residual).")
@click.option("--full-residual", is_flag=True, help="Keep as differences what factors cannot hold: base + adapter is TUNED again.")
@click.option("--biases/--no-biases", default=None, help="Biases and norms, too (default: where the dialect can hold them).")
@click.option("--legacy-clamp", type=click.FloatRange(0, 1), metavar="Q", help="Cut factors at a quantile, as kohya's script does (0.99).")
@click.option("--components", metavar="A,B", help="Only these parts of all-in-one files (transformer, clip_l, ...), by rule.")
@click.option("--select", multiple=True, metavar="SELECTOR", help="Only these: double.0-9, single, img_attn, '*.mlp.*', ...")
@click.option("--device", type=click.Choice(["cpu", "cuda", "npu", "mps", "auto"]), default="cpu", show_default=True, help="Device.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads (default: one per core, at most 16).")
@click.option("--memory", metavar="SIZE", help="Limit of memory, such as 2GB: fewer threads, or an error before the run.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--allow-nonfinite", is_flag=True, help="Let NaN and infinite values through.")
@click.option("--allow-pickle", is_flag=True, help="Read .ckpt/.pt/.bin files (tensors only, nothing is run).")
@talk_options
def command(**arguments: Any) -> None:
    """Write what TUNED has more than BASE as an adapter; or any delta of a formula or recipe.

    \b
    fluxsmith extract krea.safetensors dev.safetensors -o krea-lora.safetensors --rank 64
    fluxsmith extract ./tuned/transformer ./dev/transformer -o style.safetensors --energy 0.95 --dialect diffusers
    fluxsmith extract "krea - dev" -m krea=... -m dev=... -o krea-lokr.safetensors --algo lokr --factor 16
    fluxsmith extract "ties(dev, a, b, density=0.3) - dev" -m dev=... -m a=... -m b=... -o both.safetensors

    One matrix is in memory at a time. Ctrl-C once stops and keeps what is done; the same command with --resume goes on.
    """
    from fluxsmith.adapters.dialects import DIALECTS

    a = arguments
    wish = _wish(a)
    check_target(a["output"], DIALECTS[wish.dialect])
    settings = settings_from(a["device"], a["threads"], a["memory"], a["allow_nonfinite"])
    run_extraction(
        _recipe(a), a["output"], wish, a["console"], settings=settings, resume=a["resume"], force=a["force"], allow_pickle=a["allow_pickle"]
    )


def run_extraction(recipe: Recipe, output: Path, wish: Wish, console: Console, **options: Any) -> None:
    """Extract under the eyes of the user: progress, then what was kept; options are those of engine.extract."""
    from fluxsmith.cli.progress import RunDisplay
    from fluxsmith.engine.extraction import extract

    with RunDisplay(console, "extract") as display:
        done = extract(recipe, output, wish, observer=display, **options)
    show_extracted(done, console)


def _recipe(a: dict[str, Any]) -> Recipe:
    from fluxsmith.recipes.expressions import model
    from fluxsmith.recipes.recipe import Guidance, Recipe

    if a["base"] is None:
        if os.path.isdir(a["tuned"]) or a["tuned"].endswith((".safetensors", ".gguf", ".ckpt", ".pt", ".bin")):
            fix = f"fluxsmith extract {a['tuned']} BASE -o {a['output']}"
            raise UsageError("usage.no-base", f"{a['tuned']} is given alone: an adapter is its difference from a base", fix=fix)
        if a["components"]:
            raise UsageError("usage.components", "--components is for two checkpoints; a recipe names those of each model")
        return read_wish(a["tuned"], a["models"], None, (), a["guidance"], None)
    if a["models"]:
        raise UsageError(
            "usage.model-of-no-formula", "-m names models of a formula, but two checkpoints are given", fix='"tuned - base" -m ...'
        )
    guidance = Guidance.parse(a["guidance"]) if a["guidance"] else None
    parts = parts_from(a["components"])
    root = model(a["tuned"], name="tuned", components=parts) - model(a["base"], name="base", components=parts)
    return Recipe(root, guidance=guidance, title=a["output"].stem)


def _wish(a: dict[str, Any]) -> Wish:
    from fluxsmith.adapters.extracting.extraction import Options
    from fluxsmith.engine.extraction import Wish

    if a["algo"] != "lora":
        unfit = next((flag for flag in ("rank", "energy", "threshold", "ratio", "cumulative", "legacy_clamp") if a[flag] is not None), None)
        if unfit:
            flag = unfit.replace("_", "-")
            raise UsageError("usage.rank-rule", f"--{flag} is for --algo lora, not {a['algo']}", fix=f"leave --{flag} out")
    if a["algo"] != "lora" and a["rank_multiple"] != 1:
        raise UsageError("usage.rank-rule", f"--rank-multiple is for --algo lora, not {a['algo']}", fix="leave --rank-multiple out")
    if a["factor"] is not None and a["algo"] != "lokr":
        raise UsageError("usage.factor", "--factor is for --algo lokr", fix="--algo lokr")
    rule = rule_from(a, default=32)
    assert rule is not None
    options = Options(a["algo"], rule, a["factor"], a["full_residual"], a["legacy_clamp"])
    dtype = a["dtype"] or ("fp32" if a["full_residual"] else "fp16")
    return Wish(options, _dialect(a["dialect"], a["layout"]), dtype, tuple(a["select"]), a["biases"])


def _dialect(name: str | None, layout: str | None) -> str:
    from fluxsmith.adapters.dialects import DIALECTS
    from fluxsmith.errors import did_you_mean

    chosen = name or _OF_LAYOUT[layout or "bfl"]
    writing = DIALECTS[chosen].writing if chosen in DIALECTS else None
    written = [key for key, dialect in DIALECTS.items() if dialect.writing is not None]
    if writing is None:
        why = "is read, but not written" if chosen in DIALECTS else "is no dialect of adapters"
        raise UsageError(
            "usage.unknown-dialect", f"`{chosen}` {why}", hint=did_you_mean(chosen, written), fix=f"--dialect {' | '.join(written)}"
        )
    if layout is not None and (writing.layout == "diffusers") != (layout == "diffusers"):
        raise UsageError("usage.dialect-and-layout", f"the dialect {chosen} does not have the {layout} layout", fix="give one of the two")
    return chosen


def show_extracted(done: Extracted, console: Console) -> None:
    from fluxsmith.adapters.extracting.findings import LEFT_OUT, blocks_of, kept_share

    written, blocks = done.written, blocks_of(done.findings)
    for note in (*done.plan.notes, *written.notes):
        console.warn(note)
    unheld = [finding.tensor for finding in done.findings if finding.algorithm == LEFT_OUT]
    if unheld:
        console.warn(
            f"{len(unheld)} vectors differ and are left out, as {written.dialect} cannot hold them ({unheld[0]}, ...): another --dialect"
            " keeps them, --no-biases says that it is meant"
        )
    rows = [
        (name, b["modules"], b["rank"] or "-", f"{b['kept']:.1%}", f"{b['norm']:.4g}", f"{b['residual']:.3g}", _noise(b["noise"]))
        for name, b in blocks.items()
    ]
    energy, residual = sum(f.energy for f in done.findings), sum(f.residual for f in done.findings)
    kept = kept_share(energy, residual)
    left = ", ".join(f"{count} {reason}" for reason, count in {"without difference": done.equal, **done.left_out}.items() if count)
    text = [
        table(rows, ("block", "modules", "rank", "kept", "norm", "lost", "rounding")),
        f"done   {written.modules} modules, {kept:.2%} of the norm kept, {bytes_text(written.nbytes)}" + (f" ({left})" if left else ""),
        f"       {written.path}",
    ]
    console.data("\n".join(text), {
        "output": str(written.path), "dialect": written.dialect, "modules": written.modules, "tensors": written.tensors,
        "bytes": written.nbytes, "kept": kept, "blocks": blocks, "equal": done.equal, "left_out": dict(done.left_out), "unheld": unheld,
        "inputs": dict(done.hashes), "notes": [*done.plan.notes, *written.notes],
    })  # fmt: skip


def _noise(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
