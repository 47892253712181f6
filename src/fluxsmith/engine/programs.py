"""From an expression to the program of one tensor: which bytes are loaded, which methods are applied, with what numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from fluxsmith.engine.adapters import BoundAdapter
from fluxsmith.engine.plan import Adapt, Apply, Fill, Load, Step, uses
from fluxsmith.errors import IncompatibleError, RecipeError
from fluxsmith.layouts import Bound, Canonical
from fluxsmith.methods import find_method
from fluxsmith.recipes.expressions import (
    Adapter,
    Call,
    Combination,
    Component,
    Expression,
    Fallback,
    Literal,
    Model,
    children,
    is_adapters,
    walk,
)
from fluxsmith.recipes.recipe import Guidance, Missing
from fluxsmith.recipes.schedules import BlockOrder, resolve

__all__ = ["ProgramBuilder"]

_BAKED = "time_in.out_layer.bias"
_GUIDANCE = ("guidance_in.in_layer.weight", "guidance_in.in_layer.bias", "guidance_in.out_layer.weight", "guidance_in.out_layer.bias")


@dataclass
class ProgramBuilder:
    """Builds programs for one recipe over its opened models.

    `used` collects the selectors that matched something, for the check that all did.
    """

    bounds: Mapping[str, Bound]
    guidance: Guidance | None
    missing: Missing
    blocks: Mapping[str, BlockOrder]
    adapters: Mapping[str, BoundAdapter] = field(default_factory=dict[str, BoundAdapter])
    used: set[str] = field(default_factory=set[str])
    orders: dict[int, list[Expression]] = field(default_factory=dict[int, "list[Expression]"])

    def build(self, root: Expression, tensor: Canonical, segment: str | None) -> tuple[Step, ...] | None:
        """The program of one tensor (with the numbers of one segment), or None where no input has it."""
        if "guidance" in tensor.tags and self.guidance and self.guidance.policy == "zero" and ".out_layer." in tensor.name:
            return (Fill(tensor.shape),)
        order = self.orders.setdefault(id(root), walk(root))
        work = _Program(self, tensor, segment)
        last = work.run(order)
        if last is None and "guidance" in tensor.tags:
            return (Fill(tensor.shape),) if self.guidance and self.guidance.policy == "zero" else None
        return None if last is None else work.ordered(last)


class _Problem:
    """A node that cannot be computed for this tensor; an error unless a fallback takes its place."""

    def __init__(self, error: IncompatibleError) -> None:
        self.error = error


class _Unbased:
    """An adapter that reads weights, before it is known whose."""

    def __init__(self, node: Adapter) -> None:
        self.node = node


class _Program:
    def __init__(self, builder: ProgramBuilder, tensor: Canonical, segment: str | None) -> None:
        self._builder, self._tensor, self._segment = builder, tensor, segment
        self._steps: list[Step] = []
        self._known: dict[int, int | _Problem | _Unbased | None] = {}

    def run(self, order: Sequence[Expression]) -> int | None:
        """The step that computes the last node of an order (inputs first), None where no input has this tensor.

        Raises the error of a problem that no fallback mended.
        """
        for node in order:
            self._known[id(node)] = self._node(node)
        last = self._known[id(order[-1])]
        if isinstance(last, _Problem):
            raise last.error
        if isinstance(last, _Unbased):
            raise _no_base(last.node)
        return last

    def ordered(self, last: int) -> tuple[Step, ...]:
        """The steps that the last one needs, without those that an absent input left over."""
        needed = {last}
        for index in range(last, -1, -1):
            step = self._steps[index]
            if index in needed:
                needed.update(uses(step))
        place = {old: new for new, old in enumerate(sorted(needed))}
        return tuple(_renumbered(self._steps[old], place) for old in place)

    def _node(self, node: Expression) -> int | _Problem | _Unbased | None:
        """The step of a node whose inputs are known."""
        if isinstance(node, Model):
            return self._model(node)
        if isinstance(node, Adapter):
            return self._adapter(node)
        if isinstance(node, Literal):
            return self._add(Fill(self._tensor.shape, self._number(node.value)))
        if isinstance(node, Fallback):
            first = self._known[id(node.first)]
            return self._known[id(node.second)] if first is None or isinstance(first, _Problem) else first
        if isinstance(node, Component):
            inside = self._tensor.component in node.names
            return self._known[id(node.node)] if inside != node.omitted else None
        problem = next((found for child in children(node) if isinstance(found := self._known[id(child)], _Problem)), None)
        if problem is not None:
            return problem
        try:
            return self._combination(node) if isinstance(node, Combination) else self._call(cast("Call", node))
        except RecipeError:
            raise
        except IncompatibleError as error:
            return _Problem(error)

    def _index(self, node: Expression) -> int | None:
        found = self._known[id(node)]
        assert not isinstance(found, _Problem)
        if isinstance(found, _Unbased):
            raise _no_base(found.node)
        return found

    def _add(self, step: Step) -> int:
        self._steps.append(step)
        return len(self._steps) - 1

    def _model(self, model: Model) -> int | None:
        bound = self._builder.bounds[model.name]
        view = bound.views.get(self._tensor.name)
        if view is None:
            return None
        index = self._add(Load(model.name, view))
        guidance = self._builder.guidance
        if guidance and guidance.policy == "bake" and self._tensor.name == _BAKED and _GUIDANCE[0] in bound.views:
            parts = tuple(self._add(Load(model.name, bound.views[name])) for name in _GUIDANCE)
            return self._add(Apply("bake_guidance", (index, *parts), {"guidance": guidance.value}))
        if len(view.shape) == len(self._tensor.shape) == 2 and view.shape[1] < self._tensor.shape[1]:  # an adapter widens it
            return self._add(Apply("pad_columns", (index,), {"columns": self._tensor.shape[1]}))
        return index

    def _adapter(self, node: Adapter) -> int | _Problem | _Unbased | None:
        """The step of an adapter's delta, None where it does not change this tensor."""
        parts = self._builder.adapters[node.name].parts.get(self._tensor.name, ())
        if not parts or self._number(node.weight) == 0:
            return None
        if all(part.reads == "nothing" for part in parts):
            return self._adapt(node, None)
        if node.base is None:
            return _Unbased(node)
        found = self._known[id(node.base)]
        return found if isinstance(found, _Problem) else self._adapt(node, self._index(node.base))

    def _adapt(self, node: Adapter, base: int | None) -> int:
        parts = self._builder.adapters[node.name].parts[self._tensor.name]
        return self._add(Adapt(node.name, self._tensor.shape, parts, self._number(node.weight), base))

    def _combination(self, node: Combination) -> int | None:
        weights = [(term, factor) for term, factor in node.terms if factor != 0 and term.space == "weight"]
        others = [(term, factor) for term, factor in node.terms if factor != 0 and term.space != "weight"]
        unbased = [(found.node, factor) for term, factor in others if isinstance(found := self._known[id(term)], _Unbased)]
        if not unbased:
            return self._sum([*weights, *others])
        base = self._sum(weights) if weights and node.space == "weight" else None
        if base is None:
            raise _no_base(unbased[0][0])
        plain = [(term, factor) for term, factor in others if not isinstance(self._known[id(term)], _Unbased)]
        steps = [(base, 1.0), *((self._adapt(term, base), factor) for term, factor in unbased)]
        steps += [(index, factor) for term, factor in plain if (index := self._index(term)) is not None]
        return self._add(Apply("combination", tuple(i for i, _ in steps), {"weights": tuple(factor for _, factor in steps)}))

    def _sum(self, terms: Sequence[tuple[Expression, float]]) -> int | None:
        parts = [(self._index(term), factor, term.space) for term, factor in terms]
        present = [(index, factor, space) for index, factor, space in parts if index is not None]
        if not present:
            return None
        absent = [term for (index, _, _), (term, _) in zip(parts, terms, strict=True) if index is None and not is_adapters(term)]
        if absent:
            self._allow_missing(absent)
        total = sum(factor for _, factor, space in present if space == "weight")
        scale = total if absent and abs(total) > 1e-6 else 1.0
        weights = tuple(factor / scale if space == "weight" else factor for _, factor, space in present)
        if weights == (1.0,):
            return present[0][0]
        return self._add(Apply("combination", tuple(index for index, _, _ in present), {"weights": weights}))

    def _call(self, node: Call) -> int | None:
        indices: list[int | None] = [self._index(i) for i in node.inputs]
        if all(index is None for index in indices):
            return None
        for place, (index, child) in enumerate(zip(indices, node.inputs, strict=True)):
            if index is None and is_adapters(child):
                indices[place] = self._add(Fill(self._tensor.shape))
        fixed = len(node.method.inputs) - int(node.method.inputs[-1].variadic)
        options = self._options(node, len(indices) - fixed)
        if any(index is None for index in indices):
            policy = self._allow_missing([i for i, index in zip(node.inputs, indices, strict=True) if index is None])
            if policy == "base":
                if indices[0] is None:
                    return None
                base = indices[0]
                indices = [*(base if index is None else index for index in indices)]
        if any(index is None for index in indices[:fixed]) or (fixed == len(indices) and None in indices):
            return next(index for index in indices if index is not None)
        return self._apply(node, indices, fixed, options)

    def _apply(self, node: Call, indices: list[int | None], fixed: int, options: dict[str, Any]) -> int | None:
        """A call without the variadic inputs that are absent, or whose weight is zero where that means unread."""
        method = node.method
        weights = options.get("weights") if method.skips_zero else None
        kept = [i for i in range(len(indices) - fixed) if indices[fixed + i] is not None and (weights is None or weights[i] != 0)]
        if not kept and method.inputs[-1].variadic:
            return indices[0] if fixed else None
        if len(kept) == 1 and not fixed and method.skips_zero and options.get("normalize"):
            return indices[kept[0]]  # the average of one is itself: copied, or converted with one rounding
        chosen = [*indices[:fixed], *(indices[fixed + i] for i in kept)]
        tensors = self._tensors(node, kept)
        for name, option in method.options.items():
            if option.per_input and name in options:
                options[name] = tuple(options[name][i] for i in kept)
        return self._add(Apply(method.name, tuple(i for i in chosen if i is not None), options, tensors))

    def _tensors(self, node: Call, kept: Sequence[int]) -> dict[str, int | tuple[int, ...]]:
        """The steps of the options that are nodes, of those inputs that are there."""
        found: dict[str, int | tuple[int, ...]] = {}
        for name, value in node.tensors.items():
            nodes = [value[i] for i in kept] if isinstance(value, tuple) else [value]
            steps = [self._index(n) for n in nodes]
            if not node.method.options[name].required and all(step is None for step in steps):
                continue  # the method does without
            if None in steps:
                raise self._missing_error([n for n, step in zip(nodes, steps, strict=True) if step is None])
            indices = tuple(step for step in steps if step is not None)
            found[name] = indices if isinstance(value, tuple) else indices[0]
        return found

    def _options(self, node: Call, variadic: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, option in node.method.options.items():
            value = node.options.get(name, option.default)
            if option.required and name not in node.options:
                raise RecipeError("recipe.missing-option", f"{node.method.name} needs `{name}`")
            if name in node.tensors or (option.kind == "tensor" and name not in node.options):
                continue
            if option.per_input:
                given = value if isinstance(value, tuple) else (value,) * variadic
                values[name] = tuple(self._number(v) for v in given) or (1.0,) * variadic
            else:
                values[name] = self._number(value) if option.kind == "float" else value
        return values

    def _number(self, value: Any) -> float:
        return float(resolve(value, self._tensor, self._segment, self._builder.blocks, self._builder.used))

    def _allow_missing(self, absent: list[Expression]) -> Missing:
        """The policy for inputs that lack this tensor; raises IncompatibleError where there is none."""
        guidance = self._builder.guidance
        if "guidance" in self._tensor.tags and guidance and guidance.policy in ("keep", "zero"):
            return "skip"
        if self._builder.missing != "error":
            return self._builder.missing
        if "guidance" in self._tensor.tags:
            raise guidance_error(self._builder.bounds)
        raise self._missing_error(absent)

    def _missing_error(self, absent: Sequence[Expression]) -> IncompatibleError:
        names = ", ".join(node.name for node in absent if isinstance(node, Model)) or "an input"
        return IncompatibleError(
            "model.missing-tensor",
            f"{names} has no `{self._tensor.name}`, which another input has",
            facts={"key": self._tensor.name},
            fix="add `missing: skip` (average the others) or `missing: base` to the merge, or a fallback: `a | b`",
        )


def _no_base(node: Adapter) -> IncompatibleError:
    return IncompatibleError(
        "adapter.needs-base",
        f"`{node.name}` changes weights by a rule that reads them (DoRA, OFT, ...), but stands where there are none",
        facts={"adapter": node.reference},
        fix=f"add it to a model, as in `base + {node.name}`, or name its `base`",
    )


def guidance_error(bounds: Mapping[str, Bound]) -> IncompatibleError:
    """The question that a merge of models with and without guidance layers has to answer."""
    have = [name for name, bound in bounds.items() if bound.dims.get("guidance")]
    lack = [name for name, bound in bounds.items() if not bound.dims.get("guidance")]
    return IncompatibleError(
        "recipe.guidance",
        f"{', '.join(have)} embeds a guidance value, {', '.join(lack)} does not",
        facts={"with": ", ".join(have), "without": ", ".join(lack)},
        fix="choose with --guidance (or `guidance:` in the merge):\n"
        "drop       leave the guidance layers out, as schnell has none\n"
        "bake(3.5)  fold guidance 3.5 into the time embedding, then leave them out\n"
        "keep       keep them as they are;  zero  keep them without effect\n"
        "from(NAME) as in that model",
    )


def _renumbered(step: Step, place: Mapping[int, int]) -> Step:
    if isinstance(step, Adapt):
        return replace(step, base=None if step.base is None else place[step.base])
    if not isinstance(step, Apply):
        return step
    tensors = {name: place[i] if isinstance(i, int) else tuple(place[k] for k in i) for name, i in step.tensors.items()}
    return Apply(step.method, tuple(place[i] for i in step.inputs), step.options, tensors)


def program_has(program: Sequence[Step], trait: str) -> bool:
    """Whether a step of the program has a trait: `whole` (needs whole tensors), `rows` (whole rows)."""
    return any(
        getattr(find_method(step.method) if isinstance(step, Apply) else step, trait)
        for step in program
        if isinstance(step, (Apply, Adapt))
    )
