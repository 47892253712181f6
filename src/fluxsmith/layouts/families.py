"""All families: those that come with the package, then users' tables from a folder and from other packages.

The folder is `$FLUXSMITH_TABLES`, else `fluxsmith/tables` in `$XDG_CONFIG_HOME` (`~/.config`); every `*.yaml` in it is
a table. Packages add tables by an entry point of the group `fluxsmith.tables`, whose value is a `Table`.
"""

import os
from functools import cache
from pathlib import Path

from fluxsmith.entry_points import installed, load
from fluxsmith.errors import IncompatibleError
from fluxsmith.layouts.chroma import CHROMA
from fluxsmith.layouts.flux1 import FLUX1
from fluxsmith.layouts.flux2 import FLUX2
from fluxsmith.layouts.sd3 import SD3
from fluxsmith.layouts.stable_diffusion import SD15, SDXL
from fluxsmith.layouts.standalone import COMPONENT_TABLES
from fluxsmith.layouts.table import Table

__all__ = ["GROUP", "TABLES", "known_tables", "table_of", "tables_folder"]

GROUP = "fluxsmith.tables"

TABLES: tuple[Table, ...] = (FLUX1, FLUX2, CHROMA, SD15, SDXL, SD3)


def tables_folder() -> Path:
    """The folder of the user's tables; it need not exist."""
    given = os.environ.get("FLUXSMITH_TABLES")
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(given).expanduser() if given else Path(config).expanduser() / "fluxsmith" / "tables"


def known_tables() -> tuple[Table, ...]:
    """Every family's table; those of a folder are read again when they have changed.

    Raises IncompatibleError where a table cannot be read, or two have one name.
    """
    folder = tables_folder()
    files = sorted(folder.glob("*.yaml")) if folder.is_dir() else []
    return _with_users(tuple((path, path.stat().st_mtime_ns) for path in files))


@cache
def _with_users(files: tuple[tuple[Path, int], ...]) -> tuple[Table, ...]:
    owners = {table.family: "fluxsmith" for table in TABLES}
    tables = list(TABLES)
    for owner, table in [*_from_files(files), *_from_packages()]:
        if table.family in owners:
            raise IncompatibleError(
                "table.duplicate-family",
                f"two tables describe a family called `{table.family}`",
                facts={"one": owners[table.family], "other": owner},
                fix="give one of them another name",
            )
        owners[table.family] = owner
        tables.append(table)
    return tuple(tables)


def _from_files(files: tuple[tuple[Path, int], ...]) -> list[tuple[str, Table]]:
    if not files:
        return []
    from fluxsmith.layouts.table_file import read_table

    return [(str(path), read_table(path)) for path, _ in files]


def _from_packages() -> list[tuple[str, Table]]:
    return [(entry.value, load(entry, Table, "table", "make it a fluxsmith.layouts.Table")) for entry in installed(GROUP)]


def table_of(family: str) -> Table | None:
    """The table of a family, also of a component alone; None for a structural checkpoint."""
    return next((table for table in known_tables() if table.family == family), COMPONENT_TABLES.get(family))
