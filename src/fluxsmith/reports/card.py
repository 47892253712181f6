"""The model card of a merged folder: what the Hub reads (front matter) and what a person wants to know."""

from __future__ import annotations

from fluxsmith.engine.plan import Plan

__all__ = ["card_files", "model_card"]


def card_files(plan: Plan) -> dict[str, str]:
    """The files that a merged folder gets beside its weights."""
    return {"README.md": model_card(plan)}


def model_card(plan: Plan) -> str:
    """README.md for an output: base models, formula, what became of every key, the recipe, and how to load it."""
    actions = "\n".join(f"| {action} | {count} |" for action, count in plan.count_actions(plan.jobs).items())
    inputs = "\n".join(
        f"| `{i.name}` | {i.reference} | {i.layout} | {i.tensors} | {', '.join(f'{n} {what}' for what, n in i.outcome.items())} |"
        for i in plan.inputs
    )
    version = plan.metadata["fluxsmith.version"]
    return f"""---
{_front_matter(plan)}---

# {plan.metadata["modelspec.title"]}

`{plan.formula}`

Merged with fluxsmith {version}. The file carries the recipe below and the hashes of its inputs;
`fluxsmith reproduce` makes it again, byte for byte.

| input | reference | layout | tensors | outcome |
|---|---|---|---|---|
{inputs}

| tensors of the result | count |
|---|---|
{actions}

```yaml
{plan.recipe.strip()}
```
{_loading(plan)}"""


def _front_matter(plan: Plan) -> str:
    repositories = [i.reference.split("@")[0].split(":")[0] for i in plan.inputs]
    bases = [r for r in repositories if r.count("/") == 1 and not r.startswith((".", "/", "~", "pocket/"))]
    lines = ["tags:", "- merge", "- fluxsmith"]
    if plan.family == "flux1":
        lines = ["library_name: diffusers", "pipeline_tag: text-to-image", *lines]
    if bases:
        relation = "quantized" if plan.scheme and len(plan.inputs) == 1 else "merge"
        lines += ["base_model:", *(f"- {base}" for base in bases), f"base_model_relation: {relation}"]
    license = plan.metadata.get("modelspec.license")
    if license and "," not in license:
        known = license in ("apache-2.0", "mit")
        lines += [f"license: {license}"] if known else ["license: other", f"license_name: {license}"]
    return "\n".join(lines) + "\n"


def _loading(plan: Plan) -> str:
    if plan.layout != "diffusers" or plan.family != "flux1":
        return ""
    return """
```python
import torch
from diffusers import FluxTransformer2DModel

transformer = FluxTransformer2DModel.from_pretrained("path/to/this/folder", torch_dtype=torch.bfloat16)
```
"""
