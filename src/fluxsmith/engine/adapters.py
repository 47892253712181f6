"""The adapters of a recipe: opened for the model that they change, their modules by canonical tensor, every key accounted for."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from fluxsmith.adapters.algorithms import ALGORITHMS
from fluxsmith.adapters.module import Adapter as Opened
from fluxsmith.adapters.module import Module
from fluxsmith.adapters.reading.opening import idle_globs, open_adapter
from fluxsmith.engine.lineage import license_of
from fluxsmith.engine.plan import Adapt, Input, Job, Part, Plan
from fluxsmith.errors import IncompatibleError, RecipeError
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.references import open_reference
from fluxsmith.layouts import Bound, table_of
from fluxsmith.recipes.expressions import Adapter

__all__ = ["BoundAdapter", "adapter_inputs", "bind_adapters", "check_adapters", "widened"]


@dataclass(frozen=True)
class BoundAdapter:
    """An adapter of a recipe: what was opened, and its parts by the canonical tensor that they change."""

    node: Adapter
    opened: Opened
    parts: Mapping[str, tuple[Part, ...]] = field(default_factory=dict[str, "tuple[Part, ...]"])


def bind_adapters(
    adapters: Sequence[Adapter], models: Mapping[str, Bound], pattern: Bound, open_checkpoint: Callable[[str], Checkpoint]
) -> dict[str, BoundAdapter]:
    """Every adapter by name, opened for a model that has all tensors of the recipe's models.

    Adapters are small: those on the Hub are downloaded for a plan, too, as their numbers are needed.
    """
    spec = {name: tensor for bound in (*models.values(), pattern) for name, tensor in bound.spec.items()}
    base = replace(pattern, spec=spec)
    found: dict[str, BoundAdapter] = {}
    for node in adapters:
        checkpoint = open_checkpoint(node.reference)
        if any(file.remote for file in checkpoint.files):
            checkpoint = open_reference(node.reference, download=True)
        opened = open_adapter(checkpoint, base=base, components=node.components, ignore=node.ignore, alpha=node.alpha)
        found[node.name] = BoundAdapter(node, opened, _parts(opened))
    _check_ignore(found)
    return found


def _check_ignore(bounds: Mapping[str, BoundAdapter]) -> None:
    idle = idle_globs((bound.opened.checkpoint, bound.node.ignore) for bound in bounds.values())
    if idle:
        bound = next(bound for bound in bounds.values() if idle[0] in bound.node.ignore)
        raise RecipeError(
            "recipe.selector-without-match",
            f"`{idle[0]}`, which is to be ignored, matches no key of {bound.opened.checkpoint.reference}",
            at=bound.node.at,
            fix="leave it out; fluxsmith inspect FILE --keys '*' shows the keys",
        )


def widened(pattern: Bound, adapters: Mapping[str, BoundAdapter]) -> Bound:
    """The pattern of the result with the columns that adapters add to it: BFL's control adapters take 128 input channels
    where FLUX.1 has 64.

    Raises IncompatibleError where adapters add different numbers.
    """
    wide: dict[str, tuple[int, ...]] = {}
    for bound in adapters.values():
        for name, shape in bound.opened.widens.items():
            if wide.setdefault(name, shape) != shape:
                raise IncompatibleError(
                    "adapter.wrong-width",
                    f"adapters ask for different shapes of `{name}`",
                    facts={"one": list(wide[name]), "other": list(shape)},
                    fix="apply one of them",
                )
    table = table_of(pattern.family)
    if table is None or not wide:
        return pattern
    rows = {row.stem: row.cols for row in table.rows if row.cols is not None and len(row.cols) == 1}
    dims = {rows[name.rpartition(".")[0]][0]: shape[1] for name, shape in wide.items()}
    spec = {name: replace(tensor, shape=wide.get(name, tensor.shape)) for name, tensor in pattern.spec.items()}
    return replace(pattern, dims={**pattern.dims, **dims}, spec=spec)


def _parts(opened: Opened) -> dict[str, tuple[Part, ...]]:
    by_tensor: dict[str, list[Module]] = {}
    for module in opened.modules:
        by_tensor.setdefault(module.target.tensor, []).append(module)
    for tensor, modules in by_tensor.items():
        _check_apart(opened, tensor, modules)
    return {tensor: tuple(map(_part, modules)) for tensor, modules in by_tensor.items()}


def _part(module: Module) -> Part:
    algorithm = ALGORITHMS[module.algorithm]
    reads = algorithm.reads(module.shapes)
    return Part(module.name, module.algorithm, module.factors, module.settings, module.target.shape, module.target.spans, reads)


def _check_apart(opened: Opened, tensor: str, modules: Sequence[Module]) -> None:
    """No row of a tensor may belong to two modules of one file."""
    spans = sorted((span.start, span.start + span.rows, module.name) for module in modules for span in module.target.spans)
    for (_, stop, one), (start, _, other) in pairwise(spans):
        if start < stop:
            raise IncompatibleError(
                "adapter.two-modules",
                f"two modules of {opened.checkpoint.reference} change the same rows of `{tensor}`",
                facts={"one": one, "other": other},
                fix="use the file as its trainer wrote it",
            )


def adapter_inputs(bounds: Mapping[str, BoundAdapter], jobs: Sequence[Job], why: Callable[[str], str]) -> list[Input]:
    """What becomes of every adapter's keys; `why(tensor)` says why one that the result lacks is left out.

    Raises RecipeError where an adapter changes nothing.
    """
    used: dict[str, set[str]] = {name: set() for name in bounds}
    for job in jobs:
        for step in job.program:
            if isinstance(step, Adapt):
                used[step.adapter].add(job.tensor)
    inputs: list[Input] = []
    for name, bound in bounds.items():
        counts: dict[str, int] = {}
        if not used[name]:
            fix = "leave it out, or give it another weight"
            raise RecipeError("recipe.no-contribution", f"`{name}` contributes nothing to the result", at=bound.node.at, fix=fix)
        for module in bound.opened.modules:
            outcome = "applied" if module.target.tensor in used[name] else why(module.target.tensor)
            counts[outcome] = counts.get(outcome, 0) + len(module.sources)
        for reason in bound.opened.dropped.values():
            counts[f"dropped ({reason})"] = counts.get(f"dropped ({reason})", 0) + 1
        inputs.append(_input(name, bound.opened, counts))
    return inputs


def check_adapters(plan: Plan, touched: Collection[str]) -> None:
    """Raise IncompatibleError where an adapter's delta was zero everywhere, as that of one that was never trained is."""
    for name in dict.fromkeys(step.adapter for job in plan.jobs for step in job.program if isinstance(step, Adapt)):
        if name not in touched:
            reference = next(i.reference for i in plan.inputs if i.name == name)
            raise IncompatibleError(
                "adapter.changes-nothing",
                f"`{name}` changes nothing: its delta is zero in every tensor",
                facts={"file": reference},
                fix="leave it out; an adapter that was not trained has such factors",
            )


def _input(name: str, opened: Opened, outcome: Mapping[str, int]) -> Input:
    checkpoint = opened.checkpoint
    return Input(
        name, checkpoint.reference, opened.family, f"{opened.dialect} adapter", "", None, len(checkpoint.tensors), checkpoint.nbytes,
        tuple(sorted(checkpoint.dtypes)), checkpoint.files, outcome, license_of(checkpoint),
    )  # fmt: skip
