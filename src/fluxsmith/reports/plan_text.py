"""A plan for people: inputs, formula, what becomes of every key, bytes and memory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from fluxsmith.engine.memory import peak_bytes
from fluxsmith.engine.plan import Plan

__all__ = ["plan_facts", "plan_text"]


def plan_facts(plan: Plan, output: Path | None, threads: int) -> dict[str, Any]:
    """The numbers of a plan, for `--json`; the jobs themselves are in `Plan.as_dict()`."""
    return {
        "title": plan.title,
        "formula": plan.formula,
        "family": plan.family,
        "layout": plan.layout,
        "inputs": {
            i.name: {
                "reference": i.reference, "layout": i.layout, "guidance": i.guidance, "tensors": i.tensors, "bytes": i.nbytes,
                "dtypes": list(i.dtypes), "outcome": dict(i.outcome), "license": i.license,
            }
            for i in plan.inputs
        },
        "actions": plan.count_actions(plan.jobs),
        "output": {
            "path": str(output) if output else None, "tensors": sum(len(f.tensors) for f in plan.files),
            "files": {f.name: f.size for f in plan.files}, "bytes": plan.needs.written, "dtypes": _dtypes(plan),
            "scheme": plan.scheme or None, "quantised": len({job.tensor for job in plan.jobs if job.quantised}),
        },
        "needs": {
            "memory": peak_bytes(plan.needs.tile_bytes, plan.needs.whole_bytes, threads), "memory_present": _memory_present(),
            "disk": plan.needs.disk, "disk_free": shutil.disk_usage(_parent(output)).free,
            "read": plan.needs.read, "written": plan.needs.written,
        },
        "notes": list(plan.notes),
        "digest": plan.digest(),
    }  # fmt: skip


def plan_text(facts: dict[str, Any], next_command: str) -> str:
    """The same as a page of text."""
    lines: list[tuple[str, str]] = []
    if facts["title"] and facts["title"] != facts["formula"]:
        lines.append(("title", facts["title"]))
    lines.append(("formula", facts["formula"]))
    for number, (name, i) in enumerate(facts["inputs"].items()):
        guidance = {True: ", guidance", False: ", no guidance", None: ""}[i["guidance"]]
        counts = ", ".join(f"{count} {outcome}" for outcome, count in i["outcome"].items())
        total = sum(i["outcome"].values())
        keys = f"{i['tensors']} tensors" if total == i["tensors"] else f"{i['tensors']} tensors (as {total})"
        text = f"{name}  {keys}  {_size(i['bytes'])} {'+'.join(i['dtypes'])}  {i['layout']}{guidance}: {counts}"
        lines.append(("inputs" if number == 0 else "", text))
    lines.append(("tensors", ", ".join(f"{count} {action}" for action, count in facts["actions"].items())))
    out, needs = facts["output"], facts["needs"]
    stored = "+".join(out["dtypes"]) + (f" ({out['scheme']})" if out["scheme"] else "")
    files = f", {len(out['files'])} files" if len(out["files"]) > 1 else ""
    target = f" -> {out['path']}" if out["path"] else ""
    lines.append(("output", f"{facts['layout']} layout, {stored}, {out['tensors']} tensors, {_size(out['bytes'])}{files}{target}"))
    lines.append(
        (
            "needs",
            f"RAM {_size(needs['memory'])} of {_size(needs['memory_present'])}   "
            f"disk {_size(needs['disk'])} of {_size(needs['disk_free'])} free   reads {_size(needs['read'])}",
        )
    )
    lines += [("note", note) for note in facts["notes"]]
    lines.append(("next", next_command))
    return "\n".join(f"  {label:<9} {text}" for label, text in lines)


def _dtypes(plan: Plan) -> list[str]:
    return sorted({entry.dtype for file in plan.files for entry in file.tensors.values()})


def _parent(output: Path | None) -> Path:
    parent = (output or Path("x")).resolve().parent
    while not parent.exists():
        parent = parent.parent
    return parent


def _memory_present() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
