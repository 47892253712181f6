"""`fluxsmith adapter convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fluxsmith.cli.adapter_files import check_ignore, check_target, parts_from
from fluxsmith.cli.console import Console, bytes_text
from fluxsmith.cli.options import talk_options
from fluxsmith.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from fluxsmith.adapters.converting.files import Outcome
    from fluxsmith.adapters.dialects import Dialect
    from fluxsmith.adapters.extracting.rank import RankRule

__all__ = ["command"]


@click.command("convert")
@click.argument("reference", metavar="ADAPTER")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write; for peft a folder.")
@click.option("--to", "dialect", required=True, metavar="DIALECT", help="kohya, diffusers, peft, comfy, ... (fluxsmith list dialects).")
@click.option("--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), help="Type of the factors (default: as they are).")
@click.option("--base", metavar="REF", help="The model it was trained on, where the delta depends on it (DoRA by columns, OFT, BOFT).")
@click.option("--as", "shape", type=click.Choice(["diff", "lora"]), help="Write dense deltas, or the nearest LoRA of --rank or --energy.")
@click.option("--rank", type=click.IntRange(min=1), help="Rank for --as lora.")
@click.option("--energy", type=click.FloatRange(0, 1, min_open=True), help="For --as lora: the share of the norm to keep.")
@click.option("--components", metavar="A,B", help="Convert these parts only (transformer, clip_l, ...), by rule.")
@click.option("--ignore", multiple=True, metavar="GLOB", help="Leave out keys that match, by rule.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@talk_options
def command(**arguments: Any) -> None:
    """Write an adapter in another dialect, with the same delta.

    \b
    fluxsmith adapter convert style.safetensors -o style-diffusers.safetensors --to diffusers
    fluxsmith adapter convert ./peft-folder -o style.safetensors --to kohya
    fluxsmith adapter convert lokr.safetensors -o style.safetensors --to diffusers --as lora --rank 32
    fluxsmith adapter convert dora.safetensors -o dora-kohya.safetensors --to kohya --base flux1-dev.safetensors

    Conversion is exact: parts of fused tensors are cut and joined, the scale goes where the dialect has it. What the
    dialect cannot hold is an error that says what could be done.
    """
    from fluxsmith.adapters.converting.files import convert
    from fluxsmith.adapters.reading.opening import open_adapter
    from fluxsmith.io.references import open_reference

    a = arguments
    console: Console = a["console"]
    if a["rank"] and a["energy"]:
        raise UsageError("usage.rank-rule", "--rank and --energy exclude each other", fix="give one of them")
    unused = [name for name in ("rank", "energy") if a[name] is not None and a["shape"] != "lora"]
    if unused:
        raise UsageError("usage.rank-rule", f"--{unused[0]} is for --as lora", fix=f"--as lora --{unused[0]} {a[unused[0]]}")
    dialect = _dialect(a["dialect"])
    check_target(a["output"], dialect)
    parts = parts_from(a["components"])
    base = _base(a["base"]) if a["base"] else None
    adapter = open_adapter(open_reference(a["reference"], download=True), base=base, components=parts, ignore=a["ignore"])
    check_ignore([adapter], a["ignore"])
    options = {name: a[name] for name in ("dtype", "base", "shape", "rank", "energy") if a[name]}
    for note in adapter.notes:
        console.warn(note)
    done = convert(
        adapter, a["output"], dialect, base=base, shape=a["shape"], rule=_rule(a["rank"], a["energy"]), dtype=a["dtype"],
        force=a["force"], options=options,
    )  # fmt: skip
    for note in done.notes:
        console.warn(note)
    _show(done, adapter.dialect, len(adapter.dropped), console)


def _dialect(name: str) -> Dialect:
    from fluxsmith.adapters.dialects import DIALECTS

    written = {key: dialect for key, dialect in DIALECTS.items() if dialect.writing is not None}
    if name not in written:
        why = "is read, but not written" if name in DIALECTS else "is no dialect of adapters"
        raise UsageError(
            "usage.unknown-dialect", f"`{name}` {why}", hint=did_you_mean(name, list(written)), fix=f"--to {' | '.join(written)}"
        )
    return written[name]


def _base(reference: str) -> Any:
    from fluxsmith.io.references import open_reference
    from fluxsmith.layouts import known_tables
    from fluxsmith.layouts.detection import open_model

    return open_model(open_reference(reference, download=True), known_tables())


def _rule(rank: int | None, energy: float | None) -> RankRule | None:
    from fluxsmith.adapters.extracting.rank import RankRule

    if rank is None and energy is None:
        return None
    return RankRule("rank", rank) if rank is not None else RankRule("energy", energy or 1.0)


def _show(done: Outcome, source: str, dropped: int, console: Console) -> None:
    written = done.written
    ways = ", ".join(f"{count} {way}" for way, count in done.ways.items())
    worst = max(done.residuals.items(), key=lambda item: item[1], default=None)
    made = f"{written.modules} modules ({ways}), {written.tensors} tensors, {bytes_text(written.nbytes)}"
    lines = [f"done   {source} -> {written.dialect}: {made}", f"       {written.path}"]
    if worst:
        lines.append(f"       at most {worst[1]:.2%} of a delta's norm is lost, at {worst[0]}")
    if dropped:
        lines.append(f"       {dropped} keys dropped by rule")
    facts = {
        "output": str(written.path), "from": source, "to": written.dialect, "modules": written.modules, "ways": dict(done.ways),
        "tensors": written.tensors, "bytes": written.nbytes, "residuals": dict(done.residuals), "dropped": dropped,
        "notes": list(done.notes),
    }  # fmt: skip
    console.data("\n".join(lines), facts)
