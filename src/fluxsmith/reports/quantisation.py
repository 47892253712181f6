"""What quantising cost: the relative error ||W' - W|| / ||W|| by block, and the worst tensors."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from fluxsmith.reports.block_map import block_map, in_block_order

if TYPE_CHECKING:
    from fluxsmith.engine.merging import Merged

__all__ = ["quantisation_facts", "quantisation_html", "quantisation_text"]

_WORST = 5


def quantisation_facts(done: Merged) -> dict[str, Any] | None:
    """The errors of a finished run as data, None where it quantised nothing."""
    errors = done.outcome.errors
    if not errors:
        return None
    return {
        "scheme": _scheme(done),
        "quantised": len(errors.tensors),
        "relative_error": errors.total,
        "blocks": {block: errors.by_block[block] for block in in_block_order(list(errors.by_block))},
        "tensors": errors.tensors,
    }


def quantisation_text(done: Merged) -> str:
    """The same in a few lines; empty where nothing was quantised."""
    facts = quantisation_facts(done)
    if facts is None:
        return ""
    blocks: dict[str, float] = facts["blocks"]
    low, high = min(blocks, key=lambda block: blocks[block]), max(blocks, key=lambda block: blocks[block])
    lines = [("quantised", f"{facts['quantised']} tensors as {facts['scheme']}, relative error {facts['relative_error']:.2%}")]
    if len(blocks) > 1:
        lines.append(("blocks", f"from {blocks[low]:.2%} ({low}) to {blocks[high]:.2%} ({high})"))
    worst = list(facts["tensors"].items())[:_WORST]
    lines += [("worst" if i == 0 else "", f"{error:.2%}  {name}") for i, (name, error) in enumerate(worst)]
    return "\n".join(f"       {label:<10} {text}" for label, text in lines)


def quantisation_html(done: Merged) -> str:
    """A part of a page; empty where nothing was quantised."""
    facts = quantisation_facts(done)
    if facts is None:
        return ""
    blocks = list(facts["blocks"])
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{error:.2%}</td></tr>" for name, error in list(facts["tensors"].items())[:_WORST])
    return (
        "<h2>What quantising cost</h2>"
        f"<p>{facts['quantised']} tensors as {escape(facts['scheme'])}: |stored - wanted| / |wanted| is {facts['relative_error']:.2%}"
        " over all of them, measured while they were written.</p>"
        + block_map({facts["scheme"]: facts["blocks"]}, blocks, "relative error of quantising by block")
        + f"<table><thead><tr><th>worst tensors</th><th>relative error</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _scheme(done: Merged) -> str:
    """The name of the scheme, or of the types that were rounded to."""
    from fluxsmith.io.dtypes import DTYPES

    if done.plan.scheme:
        return done.plan.scheme
    return " and ".join(sorted({DTYPES[job.dtype].short for job in done.plan.jobs if job.tensor in done.outcome.errors.tiles}))
