"""`fluxsmith adapter inspect`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from fluxsmith.cli.adapter_files import check_ignore, parts_from
from fluxsmith.cli.console import Console, bytes_text, table
from fluxsmith.cli.options import talk_options
from fluxsmith.io.dtypes import DTYPES

if TYPE_CHECKING:
    from fluxsmith.analysis.adapter_inspection import AdapterInspection, Group

__all__ = ["command", "summary"]

_WIDTH = 88


@click.command("inspect")
@click.argument("reference", metavar="ADAPTER")
@click.option("--base", metavar="REF", help="The model it is for: checks that it fits, and gives norms that depend on it.")
@click.option("--components", metavar="A,B", help="Look at these parts only (transformer, clip_l, ...).")
@click.option("--ignore", multiple=True, metavar="GLOB", help="Leave out keys that match.")
@click.option("--stats", is_flag=True, help="Read the factors: the norm of the delta, by block.")
@talk_options
def command(reference: str, base: str | None, components: str | None, ignore: tuple[str, ...], stats: bool, console: Console) -> None:
    """Show what an adapter is: dialect, family, algorithms, ranks, where the scale comes from, blocks.

    \b
    fluxsmith adapter inspect style.safetensors
    fluxsmith adapter inspect ./peft-folder --json
    fluxsmith adapter inspect style.safetensors --base flux1-dev.safetensors --stats

    Only headers and small numbers are read, except with --stats. An adapter that could not be applied is shown with
    the reason.
    """
    from fluxsmith.analysis.adapter_inspection import inspect_adapter, module_norms
    from fluxsmith.io.references import open_reference
    from fluxsmith.layouts import known_tables
    from fluxsmith.layouts.detection import open_model

    bound = open_model(open_reference(base, download=stats), known_tables()) if base else None
    parts = parts_from(components)
    found = inspect_adapter(open_reference(reference, download=stats), base=bound, components=parts, ignore=ignore)
    if found.adapter is not None:
        check_ignore([found.adapter], ignore)
    if stats:
        found = replace(found, norms=module_norms(found, bound))
    console.data(summary(found, verbose=console.verbose), found.as_dict())


def summary(found: AdapterInspection, *, verbose: bool = False) -> str:
    """What there is to say of an adapter, for people."""
    adapter, checkpoint = found.adapter, found.checkpoint
    types = ", ".join(DTYPES[name].short if name in DTYPES else name for name in sorted(checkpoint.dtypes))
    rows = [
        ("what", _what(found)),
        ("dialect", _dialects(found)),
        ("layout", ", ".join(f"{layout} ({component})" for component, layout in found.layouts.items())),
        ("size", f"{len(found.modules)} modules of {len(checkpoint.tensors)} tensors, {bytes_text(checkpoint.nbytes)}, {types}"),
        ("blocks", _blocks(found)),
        ("scale", found.scale_source),
        *((key.rpartition(".")[2], _cut(text, verbose)) for key, text in found.producer.items()),
        ("made by", _made(found)),
        *(("note", note) for note in (adapter.notes if adapter else ())),
        ("dropped", f"{len(adapter.dropped)} keys, first: {next(iter(adapter.dropped.items()))}" if adapter and adapter.dropped else ""),
    ]
    width = max(len(label) for label, text in rows if text)
    lines = [checkpoint.reference, *(f"  {label:<{width}}  {text}" for label, text in rows if text)]
    if found.error is not None:
        return "\n".join([*lines, "", found.error.render()])
    lines += ["", table([_cells(group) for group in found.groups], ("algorithm", "where", "modules", "rank", "alpha", "scale"))]
    if found.norms:
        norms = [(block, len(found.blocks[block]), "needs --base" if n is None else f"{n:.4g}") for block, n in found.norms.items()]
        lines += ["", table(norms, ("block", "modules", "norm of the delta"))]
    return "\n".join(lines)


def _what(found: AdapterInspection) -> str:
    if found.adapter is not None:
        return f"an adapter for {found.adapter.family}"
    return "no adapter" if found.error is not None and found.error.code == "adapter.is-model" else "an adapter"


def _dialects(found: AdapterInspection) -> str:
    (best, score), *others = list(found.readings.items()) or [("none that is known", 0.0)]
    rivals = ", ".join(f"{name} {share:.2f}" for name, share in others[:3])
    return f"{best}, score {score:.2f}" + (f" (also {rivals})" if rivals else "")


def _blocks(found: AdapterInspection) -> str:
    """Runs of numbers of each kind: double 0-18, single 0-37; then what stands outside."""
    numbers: dict[str, list[int]] = {}
    others: list[str] = []
    for block in found.blocks:
        kind, _, number = block.rpartition(".")
        if kind and number.isdigit():
            numbers.setdefault(kind, []).append(int(number))
        else:
            others.append(block)
    runs = [f"{kind} {_runs(sorted(found_numbers))}" for kind, found_numbers in numbers.items()]
    shown = others[:4] + ([f"{len(others) - 4} more"] if len(others) > 4 else [])
    return "; ".join([*runs, *([", ".join(shown)] if shown else [])])


def _runs(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] + 1 == number:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _cells(group: Group) -> tuple[str, ...]:
    return (group.algorithm, group.kind, str(group.modules), _span(group.rank), _span(group.alpha), _span(group.scale))


def _span(values: tuple[float, float] | None) -> str:
    if values is None:
        return "-"
    low, high = values
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _made(found: AdapterInspection) -> str:
    made = found.made
    merged = found.checkpoint.metadata.get("modelspec.merged_from", "")  # of extract, whose inputs are models
    inputs = ", ".join(str(i.get("reference", "?")) for i in made.get("inputs", [])) or merged
    return f"fluxsmith {made.get('command', '')}" + (f" from {inputs}" if inputs else "") if made else ""


def _cut(text: str, verbose: bool) -> str:
    line = " ".join(text.split())
    return line if verbose or len(line) <= _WIDTH else f"{line[:_WIDTH]}..."
