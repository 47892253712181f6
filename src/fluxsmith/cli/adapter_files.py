"""Adapters as arguments of commands: opened with their notes, the dialect that is written, what is shown of the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fluxsmith.cli.console import Console, bytes_text, table
from fluxsmith.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from fluxsmith.adapters.dialects import Dialect
    from fluxsmith.adapters.module import Adapter
    from fluxsmith.adapters.rewriting import Rewritten
    from fluxsmith.layouts import Bound

__all__ = ["open_base", "open_file", "show_rewritten", "written_dialect"]


def open_file(reference: str, base: Bound | None, ignore: Sequence[str], console: Console) -> Adapter:
    """An adapter by path, PEFT folder or Hub reference; its notes are shown."""
    from fluxsmith.adapters.opening import open_adapter
    from fluxsmith.io.references import open_reference

    adapter = open_adapter(open_reference(reference, download=True), base=base, ignore=ignore)
    for note in adapter.notes:
        console.warn(f"{reference}: {note}")
    return adapter


def open_base(reference: str | None) -> Bound | None:
    """The model of `--base`."""
    from fluxsmith.io.references import open_reference
    from fluxsmith.layouts import known_tables
    from fluxsmith.layouts.detection import open_model

    return None if reference is None else open_model(open_reference(reference, download=True), known_tables())


def written_dialect(name: str | None, adapters: Sequence[Adapter]) -> Dialect:
    """The dialect that is named, else that of the first adapter, kohya's where that one is only read."""
    from fluxsmith.adapters.dialects import DIALECTS

    written = {key: dialect for key, dialect in DIALECTS.items() if dialect.writing is not None}
    if name is None:
        return written.get(adapters[0].dialect, DIALECTS["kohya"])
    if name not in written:
        why = "is read, but not written" if name in DIALECTS else "is no dialect of adapters"
        fix = f"--dialect {' | '.join(written)}"
        raise UsageError("usage.unknown-dialect", f"`{name}` {why}", hint=did_you_mean(name, list(written)), fix=fix)
    return written[name]


def show_rewritten(done: Rewritten, console: Console) -> None:
    """What was written, and what of every block was kept where something was lost."""
    from fluxsmith.adapters.findings import blocks_of

    for note in done.notes:
        console.warn(note)
    written, blocks = done.written, blocks_of(done.findings)
    energy, residual = sum(f.energy for f in done.findings), sum(f.residual for f in done.findings)
    lines: list[str] = []
    if residual:
        rows = [
            (name, b["modules"], b["rank"] or "-", f"{b['kept']:.2%}", f"{b['norm']:.4g}", f"{b['residual']:.3g}")
            for name, b in blocks.items()
        ]
        lines.append(table(rows, ("block", "modules", "rank", "kept", "norm", "lost")))
    kept = 1 - residual / energy if residual else 1.0
    share = f"{kept:.2%} of the energy kept" if residual else "exact"
    lines += [f"done   {written.modules} modules, {share}, {bytes_text(written.nbytes)}", f"       {written.path}"]
    console.data("\n".join(lines), {
        "output": str(written.path), "dialect": written.dialect, "modules": written.modules, "tensors": written.tensors,
        "bytes": written.nbytes, "kept": kept, "blocks": blocks, "notes": list(done.notes),
    })  # fmt: skip
