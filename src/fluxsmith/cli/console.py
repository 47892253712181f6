"""What commands say: data on stdout, talk on stderr; `--json` for programs, `-q` for silence."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console as Rich

__all__ = ["Console", "bytes_text", "duration_text"]


@dataclass(frozen=True)
class Console:
    """How to talk: as JSON, quietly, or in detail."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    @property
    def rich(self) -> Rich:
        """A console for talk, on stderr."""
        from rich.console import Console as Rich

        return Rich(stderr=True, highlight=False)

    def data(self, text: str, value: Any) -> None:
        """The answer of a command: text for people, `value` as JSON for programs."""
        print(json.dumps(value, indent=None if not self.verbose else 2, default=str) if self.as_json else text)

    def talk(self, text: str) -> None:
        """A line about what happens."""
        if not self.quiet and not self.as_json:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Something that the user should know; shown also when quiet."""
        print(f"warning: {text}", file=sys.stderr, flush=True)


def table(rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Rows in columns; numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    lines = [list(header), *cells] if header else cells
    if not lines:
        return ""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    right = [all(_is_number(row[i]) for row in cells) for i in range(len(widths))] if cells else [False] * len(widths)
    return "\n".join(
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True)).rstrip() for line in lines
    )


def _is_number(text: str) -> bool:
    return text.strip("-+.%eE").replace(".", "").replace(",", "").replace("e-", "").isdigit() or text in ("", "-")


def bytes_text(count: int) -> str:
    """A size for people: `23.8 GB`."""
    size, unit = float(count), "B"
    for bigger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, bigger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def duration_text(seconds: float) -> str:
    """A time for people: `4:07`, `1:01:08`."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
