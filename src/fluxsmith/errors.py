"""Every error that a user can cause, as one tree. The exit code of the program belongs to the class.

    FluxsmithError            1  (raised directly only for bugs)
    ├── UsageError            2  wrong flags or arguments
    ├── FileError             3  a file that is missing, broken, or not what its name says
    ├── IncompatibleError     4  inputs that do not fit together
    │   ├── RecipeError       4  a recipe or formula that cannot be meant
    │   └── MethodError       4  a merge method that raises, or returns what is no result
    ├── ResourceError         5  not enough memory or disk, or an output that is in use
    ├── HubError              6  network, licence gate, missing repository
    └── Interrupted         130  stopped by the user; can be resumed

A message names what is wrong in one line; `facts` name the file, the key, what was expected and what was
found; `fix` is a command or an edit that mends it. Codes are searchable: `area.what-is-wrong`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "FileError",
    "FluxsmithError",
    "HubError",
    "IncompatibleError",
    "Interrupted",
    "MethodError",
    "Position",
    "RecipeError",
    "ResourceError",
    "UsageError",
    "did_you_mean",
]


@dataclass(frozen=True)
class Position:
    """A place in a text file: `line` and `column` count from one; `width` characters are underlined."""

    file: str
    line: int
    column: int
    text: str
    width: int = 1


class FluxsmithError(Exception):
    """Base of all errors that are shown without a traceback."""

    exit_code = 1

    def __init__(
        self,
        code: str,
        message: str,
        *,
        facts: Mapping[str, object] | None = None,
        fix: str | None = None,
        at: Position | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.facts = {label: str(value) for label, value in (facts or {}).items()}
        self.fix = fix
        self.at = at
        self.hint = hint

    def __str__(self) -> str:
        return self.render()

    def render(self) -> str:
        """The whole message, in the shape of CLI.md section 4."""
        lines = [f"error[{self.code}]: {self.message}"]
        if self.at is not None:
            lines += self._frame(self.at)
        facts = dict(self.facts)
        if self.hint and self.at is None:
            facts["hint"] = self.hint
        if self.fix:
            facts["fix"] = self.fix
        width = max((len(label) for label in facts), default=0)
        for label, value in facts.items():
            first, *rest = value.split("\n")
            lines.append(f"  {label.ljust(width)}  {first}")
            lines += [f"  {' ' * width}  {line}" for line in rest]
        return "\n".join(lines)

    def _frame(self, at: Position) -> list[str]:
        number = str(at.line)
        margin = " " * (len(number) + 3)
        hint = f" {self.hint}" if self.hint else ""
        return [
            f"  --> {at.file}:{at.line}:{at.column}",
            f"   {number}    {at.text}",
            f"{margin}    {' ' * (at.column - 1)}{'^' * at.width}{hint}",
        ]

    def as_dict(self) -> dict[str, object]:
        """The same facts for `--json`."""
        data: dict[str, object] = {"code": self.code, "message": self.message, "exit_code": self.exit_code, **self.facts}
        if self.fix:
            data["fix"] = self.fix
        if self.at:
            data["at"] = f"{self.at.file}:{self.at.line}:{self.at.column}"
        if self.hint:
            data["hint"] = self.hint
        return data


class UsageError(FluxsmithError):
    """Wrong flags or arguments."""

    exit_code = 2


class FileError(FluxsmithError):
    """A file that is missing, broken, or not what its name says."""

    exit_code = 3


class IncompatibleError(FluxsmithError):
    """Inputs that do not fit together."""

    exit_code = 4


class RecipeError(IncompatibleError):
    """A recipe or formula that cannot be meant."""


class MethodError(IncompatibleError):
    """A merge method that raises, or returns what is no result; users write methods, too."""


class ResourceError(FluxsmithError):
    """Not enough memory or disk, or an output that is in use."""

    exit_code = 5


class HubError(FluxsmithError):
    """Network, licence gate, or missing repository."""

    exit_code = 6


class Interrupted(FluxsmithError):
    """Stopped by the user; the work can be resumed."""

    exit_code = 130


def did_you_mean(word: str, known: "Mapping[str, object] | list[str] | tuple[str, ...]") -> str | None:
    """A short hint naming the closest known word, or None where nothing is close."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else None
