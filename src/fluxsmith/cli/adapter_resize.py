"""`fluxsmith adapter resize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fluxsmith.cli.adapter_files import check_ignore, check_target, open_base, open_file, show_rewritten, written_dialect
from fluxsmith.cli.options import talk_options
from fluxsmith.cli.rank_options import rank_options, rule_from
from fluxsmith.errors import UsageError

__all__ = ["command"]


@click.command("resize")
@click.argument("reference", metavar="ADAPTER")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The adapter to write.")
@rank_options
@click.option("--dialect", metavar="NAME", help="Another dialect (default: that of the adapter).")
@click.option("--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), help="Type of the factors (default: as they are).")
@click.option("--base", metavar="REF", help="The model it was trained on, where deltas depend on it (DoRA, OFT, ...).")
@click.option("--ignore", multiple=True, metavar="GLOB", help="Leave out keys that match, by rule.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@talk_options
def command(**arguments: Any) -> None:
    """Give an adapter another rank: the nearest LoRA, its scale folded in, alpha = rank.

    \b
    fluxsmith adapter resize style.safetensors -o small.safetensors --rank 8
    fluxsmith adapter resize style.safetensors -o small.safetensors --energy 0.95 --rank-multiple 4
    fluxsmith adapter resize lokr.safetensors -o lora.safetensors --rank 32
    """
    from fluxsmith.adapters.rewriting.files import resize

    a = arguments
    rule = rule_from(a, default=None)
    if rule is None:
        raise UsageError("usage.rank-rule", "say which rank is wanted", fix="--rank 16, or --energy 0.95")
    base = open_base(a["base"])
    adapter = open_file(a["reference"], base, a["ignore"], a["console"])
    check_ignore([adapter], a["ignore"])
    dialect = written_dialect(a["dialect"], [adapter])
    check_target(a["output"], dialect)
    options = {rule.kind: rule.value, "multiple": rule.multiple, "base": a["base"]}
    done = resize(adapter, a["output"], dialect, rule, base=base, dtype=a["dtype"], force=a["force"], options=options)
    show_rewritten(done, a["console"])
