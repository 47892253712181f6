"""`fluxsmith adapter merge`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fluxsmith.cli.adapter_files import (
    check_ignore,
    check_target,
    open_base,
    open_file,
    show_rewritten,
    weights_from,
    written_dialect,
)
from fluxsmith.cli.console import Console
from fluxsmith.cli.options import talk_options
from fluxsmith.cli.rank_options import rank_options, rule_from
from fluxsmith.errors import UsageError

if TYPE_CHECKING:
    from fluxsmith.adapters.extracting.rank import RankRule
    from fluxsmith.adapters.module import Adapter
    from fluxsmith.layouts import Bound

__all__ = ["command"]

EXACT = ("concat", "svd")


@click.command("merge")
@click.argument("references", metavar="ADAPTER...", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The adapter to write.")
@click.option("-w", "--weight", "weights", type=float, multiple=True, help="One for all adapters, or one for each, in their order.")
@click.option("--method", default="concat", show_default=True, help="concat (the exact sum), svd (the sum at a rank), or a merge method.")
@click.option("--option", "assign", multiple=True, metavar="NAME=VALUE", help="An option of the method, such as density=0.3.")
@rank_options
@click.option("--seed", type=int, help="Seed of random methods (default: 0).")
@click.option("--dialect", metavar="NAME", help="Another dialect (default: that of the first adapter).")
@click.option(
    "--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), help="Type of the factors (default: as they are, or fp32 where needed)."
)
@click.option("--base", metavar="REF", help="The model they were trained on, where deltas depend on it (DoRA, OFT, ...).")
@click.option("--ignore", multiple=True, metavar="GLOB", help="Leave out keys that match, by rule.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@talk_options
def command(**arguments: Any) -> None:
    """Merge adapters into one. The sum of LoRAs is exact: their factors side by side, its rank the sum of theirs.

    \b
    fluxsmith adapter merge style.safetensors subject.safetensors -o both.safetensors -w 0.8 -w 1
    fluxsmith adapter merge a.safetensors b.safetensors -o both.safetensors --method svd --rank 32
    fluxsmith adapter merge a.safetensors b.safetensors -o both.safetensors --method ties --option density=0.3 --rank 32
    fluxsmith adapter merge dora.safetensors lora.safetensors -o both.safetensors --base flux1-dev.safetensors --rank 64

    Adapters may be of different dialects and algorithms. What one alone changes is missing in the others, as zero.
    """
    a = arguments
    console: Console = a["console"]
    base = open_base(a["base"])
    adapters = [open_file(reference, base, a["ignore"], console) for reference in a["references"]]
    check_ignore(adapters, a["ignore"])
    weights = weights_from(a["weights"], len(adapters))
    rule = rule_from(a, default=None)
    check_target(a["output"], written_dialect(a["dialect"], adapters))
    if a["method"] in EXACT:
        _check_exact(a, rule)
        from fluxsmith.adapters.rewriting.files import merge

        options = {"method": a["method"], "base": a["base"], **({rule.kind: rule.value} if rule else {})}
        done = merge(
            adapters, weights, a["output"], written_dialect(a["dialect"], adapters), rule=rule, base=base, dtype=a["dtype"],
            force=a["force"], options=options,
        )  # fmt: skip
        show_rewritten(done, console)
        return
    _by_method(a, adapters, weights, rule, base)


def _check_exact(a: dict[str, Any], rule: RankRule | None) -> None:
    if a["assign"]:
        raise UsageError("usage.option", f"--option is for merge methods, {a['method']} has none", fix="leave it out")
    if a["seed"] is not None:
        raise UsageError("usage.option", f"--seed is for random merge methods, {a['method']} is none", fix="leave it out")
    if a["method"] == "svd" and rule is None:
        raise UsageError("usage.rank-rule", "--method svd needs a rank", fix="--rank 32, or --energy 0.99")


def _by_method(a: dict[str, Any], adapters: Sequence[Adapter], weights: Sequence[float], rule: RankRule | None, base: Bound | None) -> None:
    """Deltas merged by a method, and the result extracted."""
    from fluxsmith.adapters.extracting.extraction import Options
    from fluxsmith.adapters.extracting.rank import RankRule
    from fluxsmith.adapters.rewriting.combining import check_contributions
    from fluxsmith.cli.extract import show_extracted
    from fluxsmith.cli.progress import RunDisplay
    from fluxsmith.engine.adapter_merging import method_recipe, write_zeros
    from fluxsmith.engine.extraction import Wish, extract
    from fluxsmith.methods import find_method

    method = find_method(a["method"])
    check_contributions(adapters, weights)
    options = Options("lora", rule or RankRule("rank", _largest_rank(adapters)))
    dialect = written_dialect(a["dialect"], adapters)
    given = _options(a["assign"])
    recorded = {"method": method.name, "weights": weights, "options": given, "adapters": a["references"], "base": a["base"]}
    wish = Wish(options, dialect.name, a["dtype"] or "fp32", command="adapter merge", recorded=recorded)
    notes: list[str] = []
    near = next(folder for folder in a["output"].absolute().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".fluxsmith-zeros-", dir=near) as folder:
        zeros = Path(folder) / "zeros.safetensors"
        write_zeros(adapters, zeros, notes, base)
        recipe = method_recipe(method, adapters, weights, given, zeros=zeros, base=a["base"], ignore=a["ignore"], seed=a["seed"] or 0)
        with RunDisplay(a["console"], "merge") as display:
            done = extract(recipe, a["output"], wish, force=a["force"], observer=display, resumable=False)
    for note in dict.fromkeys(notes):
        a["console"].warn(note)
    show_extracted(done, a["console"])


def _options(assign: Sequence[str]) -> dict[str, Any]:
    """Numbers and words of `--option NAME=VALUE`."""
    found: dict[str, Any] = {}
    for text in assign:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError("usage.option", f"`--option {text}` is not NAME=VALUE", fix="--option density=0.3")
        try:
            number: Any = json.loads(value)
        except ValueError:
            number = value
        found[name] = tuple(number) if isinstance(number, list) else number  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return found


def _largest_rank(adapters: Sequence[Adapter]) -> int:
    from fluxsmith.adapters.algorithms import ALGORITHMS

    modules = [module for adapter in adapters for module in adapter.modules]
    ranks = [ALGORITHMS[module.algorithm].rank(module.shapes) for module in modules]
    return max([rank for rank in ranks if rank], default=32)
