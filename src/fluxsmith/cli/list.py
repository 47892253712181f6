"""`fluxsmith list`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fluxsmith.cli.console import Console, table
from fluxsmith.cli.options import talk_options
from fluxsmith.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from fluxsmith.adapters.dialects import Dialect

__all__ = ["command"]


@click.command("list")
@click.argument("what", type=click.Choice(["methods", "layouts", "dialects", "presets"]))
@click.argument("name", required=False)
@talk_options
def command(what: str, name: str | None, console: Console) -> None:
    """List what there is: methods, layouts, adapters' dialects or presets; with a NAME, all about one.

    \b
    fluxsmith list methods
    fluxsmith list methods ties
    fluxsmith list dialects
    fluxsmith list presets flux-krea-schnell
    """
    summaries, detail = {"methods": _methods, "layouts": _layouts, "dialects": _dialects, "presets": _presets}[what]()
    if name is None and what in ("methods", "dialects"):
        console.data(*(_all_methods() if what == "methods" else _all_dialects()))
        return
    if name is None:
        console.data(table([(key, text) for key, text in summaries.items()]), summaries)
        return
    if name not in summaries:
        raise UsageError(
            "usage.unknown-name", f"`{name}` is none of the {what}", hint=did_you_mean(name, list(summaries)), fix=f"fluxsmith list {what}"
        )
    text = detail(name)
    console.data(text, {"name": name, "text": text})


def _methods() -> tuple[dict[str, str], Any]:
    from fluxsmith.methods import METHODS
    from fluxsmith.methods.catalogue import detail

    return {name: METHODS[name].summary for name in sorted(METHODS)}, lambda name: detail(METHODS[name])


def _all_methods() -> tuple[str, dict[str, Any]]:
    """Every method in one table, and as data."""
    from fluxsmith.methods import METHODS
    from fluxsmith.methods.catalogue import as_data, passes_text, unit

    methods = [METHODS[name] for name in sorted(METHODS)]
    rows = [(m.name, m.returns, unit(m), passes_text(m), m.summary) for m in methods]
    return table(rows, ("method", "gives", "sees", "passes", "what it is")), {m.name: as_data(m) for m in methods}


def _layouts() -> tuple[dict[str, str], Any]:
    from fluxsmith.layouts import LAYOUTS, known_tables
    from fluxsmith.layouts.overview import family_row

    found = {**LAYOUTS, **{table.family: family_row(table).summary() for table in known_tables()}}
    return found, lambda name: found[name]


def _dialects() -> tuple[dict[str, str], Any]:
    from fluxsmith.adapters.dialects import DIALECTS

    def detail(name: str) -> str:
        dialect = DIALECTS[name]
        prefixes = [(f"  {component}", " ".join(p or "(none)" for p in found)) for component, found in dialect.prefixes.items()]
        return f"{dialect.title}\n{_about(dialect)}\n\nwhat stands before a module's name:\n{table(prefixes)}"

    return {name: dialect.title for name, dialect in DIALECTS.items()}, detail


def _all_dialects() -> tuple[str, dict[str, Any]]:
    """Every dialect in one table, and as data."""
    from fluxsmith.adapters.dialects import DIALECTS

    rows = [(d.name, "read, write" if d.writing else "read", ", ".join(d.families) or "all", d.title) for d in DIALECTS.values()]
    data = {
        d.name: {
            "title": d.title, "prefixes": d.prefixes, "layouts": d.layouts, "families": d.families, "written": d.writing is not None,
        }
        for d in DIALECTS.values()
    }  # fmt: skip
    return table(rows, ("dialect", "is", "families", "programs")), data


def _about(dialect: Dialect) -> str:
    names = "names of the layout " + " or ".join(dialect.layouts) if dialect.layouts else "names of any layout"
    families = f"families {', '.join(dialect.families)}" if dialect.families else "all families"
    return f"{names}{', joined by _' if dialect.joined else ''}; {families}"


def _presets() -> tuple[dict[str, str], Any]:
    from fluxsmith.recipes.loading import load_preset, presets

    return {name: load_preset(name, {}).title for name in presets()}, lambda name: presets()[name].read_text()
