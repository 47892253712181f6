"""`fluxsmith list`."""

from __future__ import annotations

import inspect
from typing import Any

import click

from fluxsmith.cli.console import Console, table
from fluxsmith.cli.options import talk_options
from fluxsmith.errors import UsageError, did_you_mean

__all__ = ["command"]


@click.command("list")
@click.argument("what", type=click.Choice(["methods", "layouts", "presets"]))
@click.argument("name", required=False)
@talk_options
def command(what: str, name: str | None, console: Console) -> None:
    """List what there is: methods, layouts or presets; with a NAME, all about one.

    \b
    fluxsmith list methods
    fluxsmith list methods ties
    fluxsmith list presets flux-krea-schnell
    """
    summaries, detail = {"methods": _methods, "layouts": _layouts, "presets": _presets}[what]()
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

    def detail(name: str) -> str:
        method = METHODS[name]
        inputs = ", ".join(("*" if i.variadic else "") + i.name for i in method.inputs)
        lines = [f"{name}({inputs}) -> {method.returns}", "", inspect.getdoc(method.function) or ""]
        for option in method.options.values():
            kind = "|".join(option.words) or ("one number per input" if option.per_input else option.kind)
            default = "" if option.required or option.per_input else f" = {option.default}"
            lines.append(f"  {option.name}: {kind}{default}")
        needs = list(method.statistics)
        lines += [f"  measured beforehand: {', '.join(needs)}"] if needs else []
        return "\n".join(lines + ([f"  source: {method.paper}"] if method.paper else []))

    return {name: method.summary for name, method in METHODS.items()}, detail


def _layouts() -> tuple[dict[str, str], Any]:
    from fluxsmith.layouts import LAYOUTS

    return dict(LAYOUTS), lambda name: LAYOUTS[name]


def _presets() -> tuple[dict[str, str], Any]:
    from fluxsmith.recipes.loading import load_preset, presets

    return {name: load_preset(name, {}).title for name in presets()}, lambda name: presets()[name].read_text()
