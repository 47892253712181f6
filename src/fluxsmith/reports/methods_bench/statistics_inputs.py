"""Calls of methods that need what the models do on examples: made by their own forward passes, kept for this process."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from fluxsmith.methods import Method
from fluxsmith.recipes.expressions import Expression, Model, model
from fluxsmith.reports.methods_bench.family import Call, Family
from fluxsmith.reports.methods_bench.scoring import one_thread

__all__ = ["with_statistics"]

EXAMPLES = 64
"""Training examples of each model; they are not those that children are scored on."""


def with_statistics(kind: Literal["fisher", "regmean"], option: str) -> Call:
    """A call that gives a method one file of statistics for each model, as its option `option`."""

    def call(method: Method, family: Family, options: Mapping[str, Any]) -> Expression:
        files = [_statistics(kind, node) for node in family.tuned]
        return method(*family.tuned, **{option: files, **options})

    return call


def _statistics(kind: Literal["fisher", "regmean"], node: Expression) -> Expression:
    assert isinstance(node, Model)
    return model(str(_file(kind, node.reference)), name=f"{kind} of {node.name}", holds="param")


@cache
def _file(kind: Literal["fisher", "regmean"], reference: str) -> Path:
    """Statistics of a pocket checkpoint on its own training data."""
    from fluxsmith.analysis.examples import pocket_examples
    from fluxsmith.models.statistics import fisher_information, fisher_shapes, gram_shapes, input_grams
    from fluxsmith.models.statistics_file import write_statistics
    from fluxsmith.models.transformer import load_transformer

    name = reference.removeprefix("pocket/")
    transformer = load_transformer(reference, dtype="F32")
    examples = pocket_examples(name, EXAMPLES, guidance=bool(transformer.config["guidance_embeds"]))
    fisher = kind == "fisher"
    shapes = fisher_shapes(transformer) if fisher else gram_shapes(transformer)
    tensors = fisher_information(transformer, examples) if fisher else input_grams(transformer, examples)
    target = Path(_folder().name) / f"{kind}-{name}.safetensors"
    with one_thread():
        write_statistics(target, kind, shapes, tensors, metadata={})
    return target


@cache
def _folder() -> TemporaryDirectory[str]:
    """A folder that goes when the process ends."""
    return TemporaryDirectory(prefix="fluxsmith-bench-")
