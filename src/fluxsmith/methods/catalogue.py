"""What there is to say about every method, from its declaration: for `fluxsmith list methods` and docs/methods.md.

python -m fluxsmith.methods.catalogue > docs/methods.md
"""

import inspect
from collections.abc import Iterable
from typing import Any

from fluxsmith.methods import METHODS
from fluxsmith.methods.base import Method, Option
from fluxsmith.methods.statistics import when

__all__ = ["as_data", "detail", "option_text", "page", "passes", "passes_text", "signature", "unit"]

_UNITS = {
    "tile": "any run of elements",
    "rows": "whole rows of the weight",
    "whole": "whole tensors, whose memory is planned",
}


def signature(method: Method) -> str:
    """Inputs with their space, and the space of the result: `ties(base: weight, *models: weight) -> weight`."""
    inputs = ", ".join(f"{'*' if i.variadic else ''}{i.name}: {i.space}" for i in method.inputs)
    return f"{method.name}({inputs}) -> {method.returns}"


def unit(method: Method) -> str:
    """What the method is given at once: tile, rows or whole."""
    return "whole" if method.whole else "rows" if method.rows else "tile"


def passes(method: Method) -> tuple[int, int]:
    """How often the inputs are read, at least and at most: once to merge, once for every statistic that is measured.

    Statistics that depend on one option exclude each other. A threshold whose first guess fails takes two passes more.
    """
    depending = {s.option for s in method.statistics.values() if isinstance(s, when)}
    always = sum(not isinstance(s, when) for s in method.statistics.values())
    return 1 + always, 1 + always + len(depending)


def passes_text(method: Method) -> str:
    """`2`, or `1-3` where it depends on the options."""
    low, high = passes(method)
    return str(low) if low == high else f"{low}-{high}"


def option_text(option: Option) -> str:
    """An option as one reads it: `density = 0.5, from 0 to 1, one or one per input`."""
    text = option.name
    if option.words:
        text += ": " + " | ".join(option.words)
    elif option.kind == "bool":
        text += ": true | false"
    if option.required:
        text += " (required)"
    elif option.default != ():
        text += f" = {_shown(option.default)}"
    if option.between is not None:
        low, high = option.between.low, option.between.high
        text += f", at least {low:g}" if high == float("inf") else f", from {low:g} to {high:g}"
    if option.kind == "int":
        text += ", whole"
    if option.kind == "tensor":
        text += ", a tensor of numbers"
    elif option.tensor:
        text += ", a number or a tensor of numbers"
    if option.per_input:
        text += ", one or one per input" if option.spreads else ", one per input"
        text += " (default: all 1)" if option.default == () and option.kind != "tensor" else ""
    return text


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:.6g}" if isinstance(value, float) else str(value)


def as_data(method: Method) -> dict[str, Any]:
    """All of it as plain data."""
    low, high = passes(method)
    return {
        "summary": method.summary,
        "inputs": [{"name": i.name, "space": i.space, "variadic": i.variadic} for i in method.inputs],
        "returns": method.returns,
        "unit": unit(method),
        "passes": [low, high],
        "random": method.random is not None,
        "options": {name: option_text(option) for name, option in method.options.items()},
        "paper": method.paper,
    }


def detail(method: Method) -> str:
    """All about one method, for people."""
    lines = [signature(method), "", inspect.getdoc(method.function) or "", ""]
    lines += [f"  {option_text(option)}" for option in method.options.values()]
    lines.append(f"  sees {_UNITS[unit(method)]}; reads its inputs {passes_text(method)} times{'; random' if method.random else ''}")
    return "\n".join(lines + ([f"  source: {method.paper}"] if method.paper else []))


def page(methods: Iterable[Method]) -> str:
    """docs/methods.md."""
    ordered = sorted(methods, key=lambda method: method.name)
    lines = [
        "# Merge methods",
        "",
        "Made from the code by `python -m fluxsmith.methods.catalogue > docs/methods.md`; a test keeps it so. `fluxsmith list methods",
        "NAME` shows one of them.",
        "",
        "*Sees* is what a method is given at once: a *tile* of elements, whole *rows*, or the *whole* tensor. *Passes* is how often the",
        "inputs are read: once to merge, and once for every number that is measured over whole tensors before. Every number among the",
        "options may differ from block to block (`{default: 0.5, double.0-9: 0.3}`, `{ramp: [0.2, 0.8]}`); a ramp of `scale` from alpha to",
        "alpha + beta on `task_arithmetic` is LiNeS (Wang et al. 2024, arXiv 2410.17146).",
        "",
        "| method | what it is | sees | passes | source |",
        "|---|---|---|---|---|",
    ]
    for m in ordered:
        lines.append(f"| [`{m.name}`](#{m.name}) | {_cell(m.summary)} | {unit(m)} | {passes_text(m)} | {_cell(m.paper)} |")
    for m in ordered:
        lines += ["", f"## {m.name}", "", f"`{signature(m)}`", "", inspect.getdoc(m.function) or ""]
        if m.options:
            lines += ["", *(f"- `{option_text(option)}`" for option in m.options.values())]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(METHODS.values()), end="")
