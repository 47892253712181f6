"""Making a plan: opening inputs by their headers, checking that they fit, and accounting for every tensor."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, cast

from fluxsmith.engine.adapters import BoundAdapter, adapter_inputs, bind_adapters, widened
from fluxsmith.engine.copying import with_rest
from fluxsmith.engine.inputs import Opener, adopt, bind_input, check_compatible, weight_inputs
from fluxsmith.engine.lineage import license_of, output_metadata, transformer_config
from fluxsmith.engine.memory import program_tile_bytes, whole_bytes
from fluxsmith.engine.outputs import aim, copied_files, index_files, lay_out, turn, with_dtype
from fluxsmith.engine.plan import Adapt, Fill, Input, Job, Load, Needs, Plan, Step
from fluxsmith.engine.programs import ProgramBuilder
from fluxsmith.engine.rest import settled, sources_of
from fluxsmith.engine.storage import Storage, constants, unify_dtypes
from fluxsmith.errors import IncompatibleError, RecipeError, UsageError
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.shards import OutputFile
from fluxsmith.layouts import Bound, Canonical, Table, table_of
from fluxsmith.layouts.binding import MARK
from fluxsmith.layouts.emission import COMFY_PREFIX, emit
from fluxsmith.layouts.pipeline_configs import component_configs
from fluxsmith.layouts.structural import KEYWISE
from fluxsmith.layouts.table import ORIGINAL
from fluxsmith.recipes.expressions import Adapter, Call, Expression, Literal, Nothing, walk
from fluxsmith.recipes.formula import show
from fluxsmith.recipes.recipe import Recipe
from fluxsmith.recipes.saving import recipe_to_text
from fluxsmith.recipes.schedules import Schedule, block_orders, shown_blocks
from fluxsmith.recipes.selectors import Selector

__all__ = ["make_plan"]


def make_plan(recipe: Recipe, open_checkpoint: Opener, *, output: Path | None = None, space: str = "weight") -> Plan:
    """Resolve a recipe against the headers of its inputs.

    `output` decides between one file (it ends in .safetensors) and a folder; None is for results kept in memory.
    `space` is what the result has to be: a weight for a checkpoint, a delta for an adapter that is made of it.
    Raises IncompatibleError (4) or FileError (3) for everything that would fail later.
    """
    if not recipe.rest:
        return _merged(recipe, open_checkpoint, output, space)
    sources = sources_of(recipe, open_checkpoint)
    recipe, table = settled(recipe, sources, open_checkpoint)
    alone = None if isinstance(recipe.root, Nothing) else _merged(replace(recipe, rest=()), open_checkpoint, output, space, table)
    return with_rest(alone, recipe, sources, table, output)


def _merged(recipe: Recipe, open_checkpoint: Opener, output: Path | None, space: str, table: Table | None = None) -> Plan:
    """The plan of what is merged; `table` is that of the family where something beside the inputs tells it."""
    if recipe.root.space != space:
        fix = "add it to a base" if space == "weight" else "subtract a base from it"
        raise RecipeError("recipe.wrong-space", f"the result must be a {space}, this is a {recipe.root.space}", fix=fix)
    bounds = adopt({model.name: bind_input(model, recipe, open_checkpoint) for model in recipe.models()}, table)
    pattern = check_compatible(bounds, recipe)
    adapters = bind_adapters(recipe.adapters(), weight_inputs(bounds, recipe), pattern, open_checkpoint)
    return _Planner(recipe, bounds, widened(pattern, adapters), output, adapters).plan()


@dataclass
class _Planner:
    recipe: Recipe
    bounds: Mapping[str, Bound]
    pattern: Bound
    output: Path | None
    adapters: Mapping[str, BoundAdapter]

    def plan(self) -> Plan:
        """The plan; see make_plan."""
        guidance = self.recipe.guidance
        if guidance and guidance.policy == "bake" and self.pattern.family != "flux1":
            fix = "leave the guidance layers out with `drop`, or keep them"
            raise RecipeError(
                "recipe.bad-guidance", f"no guidance can be baked into a {self.pattern.family} model: only FLUX.1 has a place", fix=fix
            )
        if guidance and guidance.policy == "from" and guidance.model not in self.bounds:
            raise RecipeError("recipe.unknown-name", f"guidance is to be from `{guidance.model}`, which is no model of the recipe")
        tensors = self._canonical()
        builder = ProgramBuilder(self.bounds, guidance, self.recipe.missing, block_orders(tensors), self.adapters)
        jobs = [job for tensor in tensors for job in self._jobs(builder, tensor)]
        self._check_places(builder)
        self._check_selectors(builder.used)
        written = {job.tensor for job in jobs}
        tensors = [tensor for tensor in tensors if tensor.name in written]
        by_name = {tensor.name: tensor for tensor in tensors}
        quantised = self._storage.quantised(tensors, self.recipe.output)
        jobs, dtypes = unify_dtypes(
            jobs, lambda name, floats: self._storage.dtype(by_name[name], floats, quantised), weight_inputs(self.bounds, self.recipe)
        )
        jobs = [self._storage.scale(job, by_name[job.tensor].shape, quantised) for job in jobs]
        return self._assemble(tensors, jobs, dtypes, self._inputs(jobs), quantised)

    def _canonical(self) -> list[Canonical]:
        """Every canonical tensor of the result, in the order of the family's table (or of the first file)."""
        models = weight_inputs(self.bounds, self.recipe)
        dims = self._dims()
        table = self._table
        if table is None:
            union = dict(self.pattern.spec)
            for name, bound in models.items():
                for key, tensor in bound.spec.items():
                    known = union.setdefault(key, tensor)
                    if known.shape != tensor.shape and self._models_using(key):
                        raise _shape_error(key, self.pattern.checkpoint.reference, known, name, tensor)
            return list(union.values())
        guidance = self.recipe.guidance
        if guidance and guidance.policy in ("drop", "bake"):
            dims["guidance"] = 0
        elif guidance and guidance.policy == "zero":
            dims["guidance"] = 1
            dims.setdefault("T", 256)
        elif guidance and guidance.policy == "from":
            dims["guidance"] = self.bounds[guidance.model].dims.get("guidance", 0)
        components = {component for bound in models.values() for component in bound.components}
        marks = {name: tensor for bound in models.values() for name, tensor in bound.spec.items() if MARK in tensor.tags}
        found = [*table.expand(dims, components), *marks.values()]
        return [tensor for tensor in found if self._naming in tensor.pieces and tensor.component not in self._placeless]

    @cached_property
    def _table(self) -> Table | None:
        """The table of the result's family; None where checkpoints are merged key by key, whatever they call themselves."""
        return None if self.pattern.layout in KEYWISE else table_of(self.pattern.family)

    @cached_property
    def _placeless(self) -> tuple[str, ...]:
        """The components that the output's layout does not have."""
        table = self._table
        return table.comfy_only if table is not None and self._layout != "comfy" else ()

    def _check_places(self, builder: ProgramBuilder) -> None:
        """Raise IncompatibleError where the result has a component for which the output's layout has no place."""
        inputs = weight_inputs(self.bounds, self.recipe).values()
        left = [tensor for bound in inputs for tensor in bound.spec.values() if tensor.component in self._placeless]
        lost = dict.fromkeys(tensor.component for tensor in left if self._program(builder, tensor, None) is not None)
        if lost:
            raise IncompatibleError(
                "output.no-component",
                f"the {self._layout} layout of {self.pattern.family} has no place for {', '.join(lost)}",
                fix=f"--layout comfy, or in the recipe `components: [{self.pattern.components[0]}]` of the input",
            )

    def _dims(self) -> dict[str, int]:
        """The dims of the result: those of the pattern, and of components that only other inputs have."""
        others = weight_inputs(self.bounds, self.recipe).values()
        return {symbol: value for bound in others for symbol, value in bound.dims.items()} | dict(self.pattern.dims)

    def _models_using(self, key: str) -> bool:
        return sum(key in bound.views for bound in self.bounds.values()) > 1

    def _jobs(self, builder: ProgramBuilder, tensor: Canonical) -> list[Job]:
        """The jobs of one tensor: one, or several where numbers or rules tell its named parts (q, k, v) apart."""
        if not tensor.segments or not self._is_fine:
            built = self._program(builder, tensor, None)
            return [] if built is None else [_job(tensor, 0, tensor.shape, *built)]
        parts = [(segment, self._program(builder, tensor, segment.name)) for segment in tensor.segments]
        first = parts[0][1]
        if first is None or all(built == first for _, built in parts):
            return [] if first is None else [_job(tensor, 0, tensor.shape, *first)]
        jobs: list[Job] = []
        for segment, built in parts:
            if built is not None:
                program = tuple(_rows(step, tensor.shape, segment.start, segment.stop) for step in built[0])
                shape = (segment.stop - segment.start, *tensor.shape[1:])
                jobs.append(_job(tensor, segment.start * prod(tensor.shape[1:]), shape, program, built[1]))
        return jobs

    @cached_property
    def _is_fine(self) -> bool:
        """Whether anything in the recipe can tell parts of a tensor apart."""
        return bool(self.recipe.rules) or any(isinstance(value, Schedule) for value in _numbers_in(self.recipe.root))

    def _program(self, builder: ProgramBuilder, tensor: Canonical, segment: str | None) -> tuple[tuple[Step, ...], str] | None:
        """The program of a tensor and the name of the rule or policy behind it."""
        root: Expression = self.recipe.root
        reason = ""
        if MARK in tensor.tags:
            owner = next(name for name, bound in self.bounds.items() if tensor.name in bound.views)
            return (Load(owner, self.bounds[owner].views[tensor.name]),), "a mark"
        for rule in self.recipe.rules:
            if rule.selector.matches(tensor, segment):
                builder.used.add(rule.selector.text)
                root, reason = rule.expression, f"rule {rule.selector.text}"
                break
        guidance = self.recipe.guidance
        if not reason and guidance and "guidance" in tensor.tags:
            reason = f"guidance: {guidance}"
            if guidance.policy == "from":
                root = next(model for model in self.recipe.models() if model.name == guidance.model)
        program = builder.build(root, tensor, segment)
        return None if program is None else (program, reason)

    def _check_selectors(self, used: set[str]) -> None:
        wanted = [rule.selector for rule in self.recipe.rules]
        for root in (self.recipe.root, *(rule.expression for rule in self.recipe.rules)):
            wanted += [selector for value in _numbers_in(root) if isinstance(value, Schedule) for selector, _ in value.entries]
        unmatched = [selector for selector in wanted if selector.text not in used]
        if unmatched:
            owner = self._adapter_with(unmatched[0])
            which = f"that the adapter `{owner}` changes" if owner else f"of this {self.pattern.family} model"
            raise RecipeError(
                "recipe.selector-without-match",
                f"`{unmatched[0].text}` matches no tensor {which}",
                at=unmatched[0].at,
                facts={"blocks": ", ".join(shown_blocks(self.pattern.spec.values()))},
                fix="fluxsmith inspect FILE --keys '*' shows the names",
            )

    def _adapter_with(self, selector: Selector) -> str:
        """The adapter in whose weight a selector stands that matches some tensor of the model, though none of its own."""
        if not any(selector.matches(t, part) for t in self.pattern.spec.values() for part in (None, *(s.name for s in t.segments))):
            return ""
        weights = {adapter.name: adapter.weight for adapter in self.recipe.adapters()}
        return next((name for name, w in weights.items() if isinstance(w, Schedule) and selector in (s for s, _ in w.entries)), "")

    def _inputs(self, jobs: Sequence[Job]) -> tuple[Input, ...]:
        """What becomes of every input's tensors; raises RecipeError where an input contributes nothing."""
        used: dict[str, dict[str, str]] = {name: {} for name in self.bounds}
        for job in jobs:
            for load in job.loads:
                used[load.model][job.tensor] = job.action
        found: list[Input] = []
        for name, bound in self.bounds.items():
            if not used[name]:
                at = next(model.at for model in self.recipe.models() if model.name == name)
                raise RecipeError("recipe.no-contribution", f"`{name}` contributes nothing to the result", at=at, fix="leave it out")
            counts: dict[str, int] = {}
            for key in bound.views:
                outcome = used[name].get(key) or self._why_unused(bound, key)
                counts[outcome] = counts.get(outcome, 0) + 1
            if bound.checkpoint.sides:
                counts["scales and tables of others"] = len(bound.checkpoint.sides)
            for reason in (*bound.dropped.values(), *bound.checkpoint.dropped.values()):
                counts[f"dropped ({reason})"] = counts.get(f"dropped ({reason})", 0) + 1
            found.append(_input(name, bound, counts))
        return (*found, *adapter_inputs(self.adapters, jobs, self._why_left_out))

    def _why_left_out(self, tensor: str) -> str:
        """Why a tensor that an adapter changes is not in the result, or not changed."""
        return self._why_unused(next(bound for bound in self.bounds.values() if tensor in bound.spec), tensor)

    def _why_unused(self, bound: Bound, key: str) -> str:
        tensor = bound.spec[key]
        if self.pattern.layout not in KEYWISE and self._naming not in tensor.pieces:
            return f"dropped (no place in the {self._layout} layout)"
        if "guidance" in tensor.tags and self.recipe.guidance:
            verb = "folded" if self.recipe.guidance.policy == "bake" else "dropped"
            return f"{verb} (guidance: {self.recipe.guidance})"
        for rule in self.recipe.rules:
            if rule.selector.matches(tensor):
                return f"dropped (rule {rule.selector.text})"
        return f"dropped (missing: {self.recipe.missing})" if self.recipe.missing != "error" else "not used (weight 0)"

    def _assemble(
        self, tensors: list[Canonical], jobs: list[Job], dtypes: Mapping[str, str], inputs: tuple[Input, ...], quantised: frozenset[str]
    ) -> Plan:
        layout, storage = self._layout, self._storage
        emitted = emit(tensors, layout, self._table)
        beside = storage.beside(emitted, quantised)
        folder = self.output is not None and self.output.suffix not in (".safetensors", ".gguf")
        shard_size = self._shard_size(folder)
        text = recipe_to_text(self.recipe)
        config = transformer_config(self.bounds, self.pattern, any("guidance" in tensor.tags for tensor in tensors))
        metadata = storage.metadata(emitted, beside, output_metadata(self.recipe, text, inputs, layout, config))
        emitted, beside = storage.rename(emitted, beside)
        stem = self.output.stem if self.output and not folder else "diffusion_pytorch_model" if layout == "diffusers" else "model"
        emitted, files = lay_out(emitted, dtypes, output=self.output, stem=stem, shard_size=shard_size, metadata=metadata, beside=beside)
        jobs = aim(turn(jobs, emitted), emitted, files, beside)
        small, copies = self._beside(files, layout, config) if folder else ({}, {})
        return Plan(
            self.recipe.title, show(self.recipe.root), self.pattern.family, layout, folder, inputs, tuple(jobs), tuple(files),
            metadata, small, config, self.recipe.seed, self.recipe.compute, _needs(jobs, files), text, self._notes(inputs),
            copies, storage.scheme.name if storage.scheme else "", constants(beside, files),
        )  # fmt: skip

    def _beside(self, files: Sequence[OutputFile], layout: str, config: Mapping[str, Any] | None) -> tuple[dict[str, str], dict[str, str]]:
        """Small files of an output folder: configs and indexes, and what is copied from the first input that has it."""
        small = {"config.json": json.dumps(self._storage.config(config), indent=2) + "\n"} if config and layout == "diffusers" else {}
        folders = {file.name.rpartition("/")[0] for file in files}
        source = next((bound.checkpoint for bound in self.bounds.values() if bound.layout == layout and bound.checkpoint.folder), None)
        whole = source is not None and (folders != {""} or layout in ("transformers", ORIGINAL))
        copies = copied_files(source, folders) if source is not None and whole else {}
        if source is not None and whole and source.config:
            small["config.json"] = with_dtype(source.config, self._storage.wanted)
        if layout == "diffusers":
            small |= self._component_configs(folders, source, copies)
        return {**small, **index_files(files)}, copies

    def _component_configs(self, folders: set[str], source: Checkpoint | None, copies: Mapping[str, str]) -> dict[str, str]:
        """The config.json of components of a pipeline, as an input has it, else from the shapes."""
        components = dict.fromkeys(tensor.component for tensor in self._canonical())
        found: dict[str, str] = {}
        for part, made in component_configs(self.pattern.family, self._dims(), tuple(components)).items():
            own = (source.parts.get(part) or (source.config if folders == {""} else None)) if source else None
            name = "config.json" if folders == {""} else f"{part}/config.json"
            if name not in copies:
                found[name] = json.dumps(own or made, indent=2) + "\n"
        return found

    @cached_property
    def _naming(self) -> str:
        """The layout by whose names the output's tensors are called, after whatever prefix."""
        return "bfl" if self._layout == "comfy" else self._layout

    @cached_property
    def _storage(self) -> Storage:
        """In what types the result is stored."""
        return Storage.of(self.recipe.output, next(iter(self.bounds.values())), self.output)

    @cached_property
    def _layout(self) -> str:
        first = next(iter(self.bounds.values()))
        demanded, wanted = self._storage.layout, self.recipe.output.layout
        if demanded is not None:
            return demanded
        if first.layout in KEYWISE:
            if wanted not in (None, first.layout):
                raise IncompatibleError(
                    "output.no-layout",
                    f"a {first.family} checkpoint has no {wanted} layout here: it is merged key by key",
                    fix="leave --layout out",
                )
            return first.layout
        table = table_of(first.family)
        if wanted and table is not None:
            original = table.layouts[0]
            known = (*table.layouts, "comfy")
            if wanted not in known:
                raise IncompatibleError(
                    "output.no-layout",
                    f"{first.family} has no layout called {wanted}",
                    facts={"layouts": ", ".join(known)},
                    fix=f"--layout {original}",
                )
            return original if wanted == "comfy" and original != "bfl" else wanted
        whole = table is not None and any(set(bound.components) & set(table.comfy_only) for bound in self.bounds.values())
        return "comfy" if first.layout == "bfl" and (whole or first.prefix == COMFY_PREFIX) else first.layout

    def _shard_size(self, folder: bool) -> int | None:
        size = self.recipe.output.shard_size
        if size and self.output is not None and not folder:
            raise UsageError(
                "usage.shards-in-a-file", f"{self.output} is one file, but shards were asked for",
                fix=f"give a folder: -o {self.output.with_suffix('')}",
            )  # fmt: skip
        return size if folder else None

    def _notes(self, inputs: Sequence[Input]) -> tuple[str, ...]:
        notes = [self._storage.note] if self._storage.note else []
        licenses = {i.license for i in inputs}
        if len(licenses) > 1 and "flux-1-dev-non-commercial-license" in licenses:
            notes.append("an input has the FLUX.1-dev licence, so the result is non-commercial")
        if self.pattern.layout == "structural" and self.pattern.family != "structural":
            notes.append(f"these look like {self.pattern.family} files; they are merged key by key, without layouts or blocks")
        return (*notes, *(f"{name}: {note}" for name, bound in self.adapters.items() for note in bound.opened.notes))


def _numbers_in(root: Expression) -> Iterator[Any]:
    """Every number of an expression that a recipe gives, one by one: options, also per input, and literals."""
    for node in walk(root):
        if isinstance(node, Literal):
            yield node.value
        if isinstance(node, Adapter):
            yield node.weight
        for option in node.options.values() if isinstance(node, Call) else ():
            yield from cast("tuple[Any, ...]", option) if isinstance(option, tuple) else (option,)


def _shape_error(key: str, one: str, a: Canonical, two: str, b: Canonical) -> IncompatibleError:
    return IncompatibleError(
        "model.wrong-shape",
        f"`{key}` has different shapes",
        facts={"key": key, one: list(a.shape), two: list(b.shape)},
        fix="merge checkpoints of one kind and size",
    )


def _rows(step: Step, shape: tuple[int, ...], start: int, stop: int) -> Step:
    """A step for some rows of a tensor of this shape; what has another shape (a Gram matrix) belongs to all of them."""
    if isinstance(step, Load):
        return Load(step.model, step.view.rows(start, stop)) if step.view.shape == shape else step
    if isinstance(step, Adapt):
        return step.cut(start, stop)
    return Fill((stop - start, *step.shape[1:]), step.value) if isinstance(step, Fill) else step


def _job(tensor: Canonical, origin: int, shape: tuple[int, ...], program: tuple[Step, ...], reason: str) -> Job:
    action = "merged"
    if len(program) == 1:
        action = "copied" if isinstance(program[0], Load) else "filled"
    return Job(tensor.name, origin, shape, program, "", (), action, reason, tensor.block)


def _input(name: str, bound: Bound, outcome: Mapping[str, int]) -> Input:
    checkpoint = bound.checkpoint
    guidance = bool(bound.dims["guidance"]) if "guidance" in bound.dims else None
    return Input(
        name, checkpoint.reference, bound.family, bound.layout, bound.prefix, guidance,
        len(checkpoint.stored), checkpoint.nbytes,
        tuple(sorted(checkpoint.kinds)), checkpoint.files, outcome, license_of(checkpoint),
    )  # fmt: skip


def _needs(jobs: Sequence[Job], files: Sequence[OutputFile]) -> Needs:
    read = sum(load.view.nbytes for job in jobs for load in job.loads)
    written = sum(file.size for file in files)
    tile = max((program_tile_bytes(job) for job in jobs), default=0)
    return Needs(read, written, written, tile, max((whole_bytes(job) for job in jobs), default=0))
