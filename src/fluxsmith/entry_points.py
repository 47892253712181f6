"""What other installed packages add to fluxsmith by their entry points: merge methods, tables of families."""

from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from fluxsmith.errors import IncompatibleError

__all__ = ["installed", "load"]

T = TypeVar("T")


def installed(group: str, name: str | None = None) -> Iterator[EntryPoint]:
    """The entry points of a group (of that name); nothing is imported."""
    yield from entry_points(group=group) if name is None else entry_points(group=group, name=name)


def load(entry: EntryPoint, kind: type[T], what: str, fix: str, error: type[IncompatibleError] = IncompatibleError) -> T:
    """What an entry point names; raises `error` with the code `WHAT.not-loaded` where it cannot be imported, or is no `kind`."""
    facts = {"entry point": entry.value}
    try:
        found = entry.load()
    except Exception as cause:
        raise error(
            f"{what}.not-loaded",
            f"{what} {entry.name} cannot be imported: {type(cause).__name__}: {cause}",
            facts=facts,
            fix="mend or reinstall the package that has it",
        ) from cause
    if not isinstance(found, kind):
        raise error(f"{what}.not-loaded", f"{entry.value} is no {kind.__name__}", facts=facts, fix=fix)
    return found
