"""Adapters as arguments of commands: opened with their notes, the dialect that is written, what is shown of the result."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from fluxsmith.cli.console import Console, bytes_text, table
from fluxsmith.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from fluxsmith.adapters.dialects import Dialect
    from fluxsmith.adapters.module import Adapter
    from fluxsmith.adapters.rewriting.files import Rewritten
    from fluxsmith.layouts import Bound

__all__ = ["check_ignore", "check_target", "open_base", "open_file", "parts_from", "show_rewritten", "weights_from", "written_dialect"]


def open_file(reference: str, base: Bound | None, ignore: Sequence[str], console: Console) -> Adapter:
    """An adapter by path, PEFT folder or Hub reference; its notes are shown."""
    from fluxsmith.adapters.reading.opening import open_adapter
    from fluxsmith.io.references import open_reference

    adapter = open_adapter(open_reference(reference, download=True), base=base, ignore=ignore)
    for note in adapter.notes:
        console.warn(f"{reference}: {note}")
    return adapter


def check_ignore(adapters: Sequence[Adapter], ignore: Sequence[str]) -> None:
    """Raise UsageError where a glob of `--ignore` matches no key of any of the adapters."""
    from fluxsmith.adapters.reading.opening import idle_globs

    idle = idle_globs((adapter.checkpoint, ignore) for adapter in adapters)
    if idle:
        files = ", ".join(adapter.checkpoint.reference for adapter in adapters)
        raise UsageError(
            "usage.ignore",
            f"--ignore {idle[0]} matches no key of {files}",
            fix="leave it out; fluxsmith inspect FILE --keys '*' shows the keys",
        )


def check_target(target: Path, dialect: Dialect) -> None:
    """Raise UsageError where the name of an output says that it is something else than the adapter that will be written."""
    folder = dialect.writing is not None and dialect.writing.folder
    if folder and target.suffix == ".safetensors":
        raise UsageError("usage.needs-a-folder", f"{dialect.name} is a folder, {target} is a file", fix=f"-o {target.with_suffix('')}")
    if not folder and target.suffix != ".safetensors":
        fix = f"-o {target.with_suffix('.safetensors')}"
        raise UsageError("usage.needs-a-file", f"{dialect.name} is one .safetensors file, {target} is none", fix=fix)


def parts_from(text: str | None) -> tuple[str, ...]:
    """The names of `--components A,B`; none where it is not given. Raises UsageError where it names nothing."""
    parts = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    if text is not None and not parts:
        raise UsageError("usage.components", "--components names none", fix="--components transformer")
    return parts


def weights_from(given: Sequence[float], count: int) -> list[float]:
    """`-w`, once for every adapter or once for all; raises UsageError for another number of them, NaN and infinity."""
    if len(given) not in (0, 1, count):
        fix = "give one -w for all of them, or one for each"
        raise UsageError("usage.weights", f"{len(given)} weights are given for {count} adapters", fix=fix)
    if not all(isfinite(weight) for weight in given):
        raise UsageError("usage.weights", f"a weight is no finite number: {', '.join(map(str, given))}", fix="-w 0.8")
    return list(given) * (count if len(given) == 1 else 1) or [1.0] * count


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
    from fluxsmith.adapters.extracting.findings import blocks_of, kept_share

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
    kept = kept_share(energy, residual)
    share = f"{kept:.2%} of the norm kept" if residual else "exact"
    lines += [f"done   {written.modules} modules, {share}, {bytes_text(written.nbytes)}", f"       {written.path}"]
    console.data("\n".join(lines), {
        "output": str(written.path), "dialect": written.dialect, "modules": written.modules, "tensors": written.tensors,
        "bytes": written.nbytes, "kept": kept, "blocks": blocks, "notes": list(done.notes),
    })  # fmt: skip
