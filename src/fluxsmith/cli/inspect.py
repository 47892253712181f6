"""`fluxsmith inspect`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from fluxsmith.cli.console import Console, bytes_text, table
from fluxsmith.cli.diff import ReadingDisplay, shortened
from fluxsmith.cli.options import talk_options
from fluxsmith.errors import UsageError
from fluxsmith.io.dtypes import DTYPES

if TYPE_CHECKING:
    from fluxsmith.analysis.inspection import Amount, Inspection, StoredKey
    from fluxsmith.analysis.values import Values

__all__ = ["command"]

_SHOWN = 6  # of kohya's ss_* keys and of lists of blocks, without -v
_WIDTH = 88  # characters of a metadata value, without -v


@click.command("inspect")
@click.argument("reference", metavar="FILE|FOLDER|REF")
@click.option("--keys", "pattern", metavar="GLOB", help="List stored keys that match, by their own or their canonical name.")
@click.option("--stats", is_flag=True, help="Read the values: magnitudes, zeros, non-finite ones, by block (with --keys: by key).")
@click.option("--threads", type=click.IntRange(min=1), help="Threads for --stats (default: one per core, at most 16).")
@click.option("--allow-pickle", is_flag=True, help="Read .ckpt/.pt/.bin files (tensors only, nothing is run).")
@talk_options
def command(reference: str, pattern: str | None, stats: bool, threads: int | None, allow_pickle: bool, console: Console) -> None:
    """Show what a checkpoint is: family, layout, types, blocks, metadata, the recipe that it carries.

    \b
    fluxsmith inspect flux1-dev.safetensors
    fluxsmith inspect black-forest-labs/FLUX.1-schnell --json
    fluxsmith inspect merged/transformer --keys "*img_attn.qkv*"
    fluxsmith inspect merged.safetensors --stats

    Only headers are read, except with --stats. Files that a merge refuses (incomplete, quantised, of another family)
    are shown as well.
    """
    from fluxsmith.analysis.inspection import inspect

    found = inspect(reference, allow_pickle=allow_pickle, download=stats)
    keys = _matching(found, pattern) if pattern is not None else None
    values = _values(found, keys, threads, console) if stats else None
    if keys is not None:
        text = _stats_text(values, "key") if values is not None else _keys_text(keys)
    else:
        text = _summary(found, console) + ("\n\n" + _stats_text(values, "block") if values is not None else "")
    facts = found.as_dict()
    if found.kind == "adapter" and keys is None:
        described, adapter = _adapter(found, console)
        text = described if values is None else f"{described}\n\n{_stats_text(values, 'block')}"
        facts |= {"adapter": adapter}
    facts |= {"keys": [vars(key) for key in keys]} if keys is not None else {}
    facts |= {"stats": {name: value.as_dict() for name, value in values.items()}} if values is not None else {}
    console.data(text, facts)


def _adapter(found: Inspection, console: Console) -> tuple[str, dict[str, Any]]:
    """What `fluxsmith adapter inspect` says."""
    from fluxsmith.analysis.adapter_inspection import inspect_adapter
    from fluxsmith.cli.adapter_inspect import summary

    adapter = inspect_adapter(found.checkpoint)
    more = "fluxsmith adapter inspect has more: the norm of the delta by block, a base to check against"
    return f"{summary(adapter, verbose=console.verbose)}\n\n{more}", adapter.as_dict()


def _matching(found: Inspection, pattern: str) -> list[StoredKey]:
    keys = found.stored_keys(pattern)
    if not keys:
        raise UsageError(
            "usage.no-match",
            f"no key of {found.reference} matches `{pattern}`",
            facts={"keys": f"{len(found.checkpoint.tensors)}, as {next(iter(found.checkpoint.tensors), 'none')}"},
            fix="a glob matches whole names: --keys '*qkv*'",
        )
    return keys


def _values(found: Inspection, keys: list[StoredKey] | None, threads: int | None, console: Console) -> dict[str, Values]:
    """Values by block, or by key where some were chosen."""
    from fluxsmith.analysis.values import measure_values
    from fluxsmith.engine.streaming import Settings

    groups = {key.key: key.key for key in keys} if keys is not None else found.blocks()
    if found.quantised and not found.quantised.startswith("plain"):
        console.warn(f"values are as stored: the scales of {found.quantised} are not applied")
    with ReadingDisplay(console, "stats") as display:
        return measure_values(found.checkpoint.tensors, groups, settings=Settings(threads), progress=display.advanced)


def _summary(found: Inspection, console: Console) -> str:
    rows = [(label, text) for label, text in _facts(found, console.verbose) if text]
    lines = [found.reference, *_labelled(rows)]
    metadata = _metadata(found, console)
    if metadata:
        lines += ["", "  metadata", *metadata]
    if found.recipe:
        lines += ["", "  recipe", *(f"    {line}" for line in found.recipe.rstrip().split("\n"))]
    return "\n".join(lines)


def _labelled(rows: Iterable[tuple[str, str]]) -> list[str]:
    lines: list[str] = []
    for label, text in rows:
        first, *rest = text.split("\n")
        lines += [f"  {label:<12}{first}", *(f"  {'':<12}{line}" for line in rest)]
    return lines


def _facts(found: Inspection, verbose: bool) -> list[tuple[str, str]]:
    amount = next(iter(found.components.values()))
    unread = found.quantised and found.checkpoint.quantised is None and not found.quantised.startswith("plain")
    elements = "stored elements" if unread else "parameters"
    return [
        ("what", found.what),
        ("stored as", found.quantised or ""),
        ("layout", _layout(found)),
        ("size", f"{_count(amount.parameters)} {elements}, {bytes_text(amount.nbytes)}"),
        ("types", _join(f"{_short(name)} {_tensors(a)}" for name, a in found.dtypes.items())),
        ("blocks", _blocks(found)),
        ("channels", _channels(found)),
        ("also in it", _join(f"{name} {_tensors(a)}, {bytes_text(a.nbytes)}" for name, a in list(found.components.items())[1:])),
        ("files", _files(found, verbose)),
        ("made from", "\n".join(f"{i.get('name', '?')} = {i.get('reference', '?')}" for i in found.made_from)),
        ("missing", _some(found.missing if found.kind != "part" else (), verbose)),
        ("unknown", _some(found.unknown, verbose)),
        ("misshapen", _some([f"{key} is {list(a)}, expected {list(b)}" for key, (a, b) in found.misshapen.items()], verbose)),
        ("note", "the rest is in the other shards: inspect their folder" if found.kind == "part" else ""),
        ("merge", f"refused: {found.refused.message} [{found.refused.code}]" if found.refused else ""),
    ]


def _layout(found: Inspection) -> str:
    if found.layout is None:
        return ""
    return found.layout + (f" after the prefix `{found.prefix}`" if found.prefix else "")


def _blocks(found: Inspection) -> str:
    """Depths; for FLUX.1 also widths, where they could be told."""
    dims = found.dims
    depth = " + ".join(f"{number} {name}" for name, number in list(found.depth.items())[:_SHOWN])
    width = f", width {dims['H']}, MLP {dims['M']}" if dims.get("H") and dims.get("M") else ""
    return depth + width + (f", {found.heads} heads of {dims['D']}" if found.heads else "")


def _channels(found: Inspection) -> str:
    dims = found.dims
    if not dims.get("in"):
        return ""
    pooled = f", pooled {dims['vec']}" if dims.get("vec") else ""
    return f"{dims['in']} in, {dims['out']} out; text {dims['ctx']}{pooled}"


def _files(found: Inspection, verbose: bool) -> str:
    files = found.checkpoint.files
    if len(files) == 1:
        return f"1 file, {bytes_text(files[0].size)}"
    names = [f"{file.path.rpartition('/')[2]}  {bytes_text(file.size)}" for file in files]
    return f"{len(files)} shards, {bytes_text(sum(file.size for file in files))}\n" + "\n".join(shortened(names, verbose))


def _some(names: Sequence[str], verbose: bool) -> str:
    """The first few of many names, their number before them."""
    return "\n".join([str(len(names)), *shortened(names, verbose)] if len(names) > 1 else names)


def _metadata(found: Inspection, console: Console) -> list[str]:
    """Values in one line each; without -v cut, and of kohya's many keys only the first."""
    cut = not console.verbose
    apart = {"fluxsmith.recipe", *(("fluxsmith.inputs", "fluxsmith.config") if cut else ())}
    apart |= {"tensor_names", *found.checkpoint.tensors} if cut and found.checkpoint.quantised else set()  # torchao's, of every tensor
    metadata = {key: value for key, value in found.checkpoint.metadata.items() if key not in apart}
    kohya = [key for key in metadata if key.startswith("ss_")]
    hidden = set(kohya[_SHOWN:]) if cut else set[str]()
    width = max((len(key) for key in metadata if key not in hidden), default=0)
    lines = [f"    {key:<{width}}  {_value(value, cut, width)}" for key, value in metadata.items() if key not in hidden]
    return lines + ([f"    ... and {len(hidden)} more ss_* keys (-v shows all)"] if hidden else [])


def _value(text: str, cut: bool, indent: int) -> str:
    if cut:
        line = " ".join(text[: 2 * _WIDTH].split())
        return line if len(text) <= _WIDTH else f"{line[:_WIDTH]}... ({len(text):,} characters)"
    return text.replace("\n", "\n" + " " * (indent + 6))


def _keys_text(keys: list[StoredKey]) -> str:
    rows = [(key.key, "x".join(map(str, key.shape)) or "scalar", _short(key.dtype), key.canonical or "-") for key in keys]
    return table(rows, ("key", "shape", "type", "canonical"))


def _stats_text(values: Mapping[str, Values], what: str) -> str:
    rows = [
        (name, f"{v.count:,}", f"{v.mean_abs:.3e}", f"{v.rms:.3e}", f"{v.max_abs:.3e}", f"{v.zero_share:.2%}", f"{v.nonfinite:,}")
        for name, v in values.items()
    ]
    return table(rows, (what, "elements", "mean |w|", "rms", "max |w|", "zeros", "not finite"))


def _short(dtype: str) -> str:
    return DTYPES[dtype].short if dtype in DTYPES else dtype


def _count(number: int) -> str:
    """Digits, after `11.9 B` or `315 M` where there are many."""
    short = next((f"{number / size:.3g} {unit} = " for size, unit in ((10**9, "B"), (10**6, "M")) if number >= size), "")
    return f"{short}{number:,}"


def _tensors(amount: Amount) -> str:
    return f"{amount.tensors} tensor{'s' if amount.tensors != 1 else ''}"


def _join(parts: Iterable[str]) -> str:
    return " | ".join(parts)
