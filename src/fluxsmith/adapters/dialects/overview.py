"""Every dialect at a glance: what is read, written and converted. The table of docs/adapters.md is made from this."""

from fluxsmith.adapters.dialects import DIALECTS, Dialect
from fluxsmith.adapters.dialects.writing import whole

__all__ = ["markdown", "rows"]

HEADER = ("dialect", "written by", "a key begins with", "read", "written in", "holds when written", "scale when written")
_SCALES = {
    "alpha": "alpha beside every module", "header": "`lora_adapter_metadata` in the header", "config": "adapter_config.json",
    "nowhere": "in the factors",
}  # fmt: skip


def rows() -> list[tuple[str, ...]]:
    """One row for every dialect, in the order in which they are tried."""
    return [_row(dialect) for dialect in DIALECTS.values()]


def markdown() -> str:
    """The same as a table in Markdown."""
    lines = [HEADER, tuple("---" for _ in HEADER), *rows()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _row(dialect: Dialect) -> tuple[str, ...]:
    prefixes = [prefix for prefixes in dialect.prefixes.values() for prefix in prefixes[:1]]
    shown = ", ".join(f"`{prefix}`" if prefix else "(the name)" for prefix in dict.fromkeys(prefixes))
    writing = dialect.writing
    if writing is None:
        return (f"`{dialect.name}`", dialect.title, shown, "yes", "not written", "", "")
    layout = "original names, fused" if writing.layout == "original" else "diffusers' names, split"
    if writing.only:
        layout += ", attention only"
    elif writing.divide is not whole:
        layout = "original names, in parts"
    held = ", ".join(writing.algorithms)
    return (
        f"`{dialect.name}`",
        dialect.title,
        shown,
        "yes",
        layout + (", a folder" if writing.folder else ""),
        held,
        _SCALES[writing.scale],
    )
