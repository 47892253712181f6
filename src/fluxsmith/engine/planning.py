"""Making a plan: opening inputs by their headers, checking that they fit, and accounting for every tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from fluxsmith.engine.inputs import Opener, bind_input, check_compatible, weight_inputs
from fluxsmith.engine.lineage import license_of, output_metadata, transformer_config
from fluxsmith.engine.memory import program_tile_bytes, whole_bytes
from fluxsmith.engine.plan import Fill, Input, Job, Load, Needs, Plan, Step, Target
from fluxsmith.engine.programs import ProgramBuilder
from fluxsmith.errors import IncompatibleError, RecipeError, UsageError
from fluxsmith.io.dtypes import DTYPES, promote
from fluxsmith.io.shards import OutputFile, place
from fluxsmith.io.writer import index_json
from fluxsmith.layouts import Bound, Canonical, table_of
from fluxsmith.layouts.emission import OutputTensor, emit
from fluxsmith.recipes.expressions import Expression
from fluxsmith.recipes.formula import show
from fluxsmith.recipes.recipe import Recipe
from fluxsmith.recipes.saving import recipe_to_text
from fluxsmith.recipes.schedules import Schedule

__all__ = ["make_plan"]


def make_plan(recipe: Recipe, open_checkpoint: Opener, *, output: Path | None = None) -> Plan:
    """Resolve a recipe against the headers of its inputs.

    `output` decides between one file (it ends in .safetensors) and a folder; None is for results kept in memory.
    Raises IncompatibleError (4) or FileError (3) for everything that would fail later.
    """
    if recipe.root.space != "weight":
        raise RecipeError("recipe.wrong-space", "the result of a merge must be a weight, this is a delta", fix="add it to a base")
    bounds = {model.name: bind_input(model, recipe, open_checkpoint) for model in recipe.models()}
    pattern = check_compatible(bounds, recipe)
    return _Planner(recipe, bounds, pattern, output).plan()


@dataclass
class _Planner:
    recipe: Recipe
    bounds: Mapping[str, Bound]
    pattern: Bound
    output: Path | None

    def plan(self) -> Plan:
        """The plan; see make_plan."""
        guidance = self.recipe.guidance
        if guidance and guidance.policy == "from" and guidance.model not in self.bounds:
            raise RecipeError("recipe.unknown-name", f"guidance is to be from `{guidance.model}`, which is no model of the recipe")
        blocks = {kind: range(self.pattern.dims.get(kind, 0)) for kind in ("double", "single")}
        builder = ProgramBuilder(self.bounds, guidance, self.recipe.missing, blocks)
        tensors = self._canonical()
        jobs = [job for tensor in tensors for job in self._jobs(builder, tensor)]
        self._check_selectors(builder.used)
        written = {job.tensor for job in jobs}
        tensors = [tensor for tensor in tensors if tensor.name in written]
        jobs, dtypes = _unify_dtypes(jobs, self.recipe.output.dtype)
        inputs = self._inputs(jobs)
        return self._assemble(tensors, jobs, dtypes, inputs)

    def _canonical(self) -> list[Canonical]:
        """Every canonical tensor of the result, in the order of the family's table (or of the first file)."""
        dims = dict(self.pattern.dims)
        table = table_of(self.pattern.family)
        if table is None:
            union = dict(self.pattern.spec)
            for name, bound in weight_inputs(self.bounds, self.recipe).items():
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
            dims["guidance"] = self.bounds[guidance.model].dims["guidance"]
        return table.expand(dims)

    def _models_using(self, key: str) -> bool:
        return sum(key in bound.views for bound in self.bounds.values()) > 1

    def _jobs(self, builder: ProgramBuilder, tensor: Canonical) -> list[Job]:
        """The jobs of one tensor: one, or several where numbers or rules tell its named parts (q, k, v) apart."""
        if not tensor.segments or not self._is_fine():
            built = self._program(builder, tensor, None)
            return [] if built is None else [_job(tensor, 0, tensor.shape, *built)]
        parts = [(segment, self._program(builder, tensor, segment.name)) for segment in tensor.segments]
        first = parts[0][1]
        if first is None or all(built == first for _, built in parts):
            return [] if first is None else [_job(tensor, 0, tensor.shape, *first)]
        jobs: list[Job] = []
        for segment, built in parts:
            if built is not None:
                program = tuple(_rows(step, segment.start, segment.stop) for step in built[0])
                shape = (segment.stop - segment.start, *tensor.shape[1:])
                jobs.append(_job(tensor, segment.start * prod(tensor.shape[1:]), shape, program, built[1]))
        return jobs

    def _is_fine(self) -> bool:
        """Whether anything in the recipe can tell parts of a tensor apart."""
        from fluxsmith.recipes.expressions import Call, walk

        calls = [node for node in walk(self.recipe.root) if isinstance(node, Call)]
        values = [v for call in calls for option in call.options.values() for v in (option if isinstance(option, tuple) else (option,))]
        return bool(self.recipe.rules) or any(isinstance(value, Schedule) for value in values)

    def _program(self, builder: ProgramBuilder, tensor: Canonical, segment: str | None) -> tuple[tuple[Step, ...], str] | None:
        """The program of a tensor and the name of the rule or policy behind it."""
        root: Expression = self.recipe.root
        reason = ""
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
        from fluxsmith.recipes.expressions import Call, walk

        wanted = [rule.selector for rule in self.recipe.rules]
        for root in (self.recipe.root, *(rule.expression for rule in self.recipe.rules)):
            for node in walk(root):
                if isinstance(node, Call):
                    values = [v for o in node.options.values() for v in (o if isinstance(o, tuple) else (o,))]
                    wanted += [s for value in values if isinstance(value, Schedule) for s, _ in value.entries]
        unmatched = [selector for selector in wanted if selector.text not in used]
        if unmatched:
            raise RecipeError(
                "recipe.selector-without-match",
                f"`{unmatched[0].text}` matches no tensor of this {self.pattern.family} model",
                at=unmatched[0].at,
                facts={"blocks": ", ".join(f"{k}.0-{self.pattern.dims[k] - 1}" for k in ("double", "single") if self.pattern.dims.get(k))},
                fix="fluxsmith inspect FILE --keys '*' shows the names",
            )

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
                outcome = used[name].get(key) or self._why_unused(name, key)
                counts[outcome] = counts.get(outcome, 0) + 1
            if bound.extras:
                counts["dropped (components: [transformer])"] = len(bound.extras)
            found.append(_input(name, bound, counts))
        return tuple(found)

    def _why_unused(self, name: str, key: str) -> str:
        tensor = self.bounds[name].spec[key]
        if "guidance" in tensor.tags and self.recipe.guidance:
            verb = "folded" if self.recipe.guidance.policy == "bake" else "dropped"
            return f"{verb} (guidance: {self.recipe.guidance})"
        for rule in self.recipe.rules:
            if rule.selector.matches(tensor):
                return f"dropped (rule {rule.selector.text})"
        return f"dropped (missing: {self.recipe.missing})" if self.recipe.missing != "error" else "not used (weight 0)"

    def _assemble(self, tensors: list[Canonical], jobs: list[Job], dtypes: Mapping[str, str], inputs: tuple[Input, ...]) -> Plan:
        layout = self._layout()
        emitted = emit(tensors, layout, table_of(self.pattern.family))
        out_dtypes = [dtypes[tensor.placements[0].source] for tensor in emitted]
        folder = self.output is not None and self.output.suffix != ".safetensors"
        shard_size = self._shard_size(folder)
        text = recipe_to_text(self.recipe)
        config = transformer_config(self.bounds, self.pattern, any("guidance" in tensor.tags for tensor in tensors))
        metadata = output_metadata(self.recipe, text, inputs, layout, config)
        stem = self.output.stem if self.output and not folder else "diffusion_pytorch_model" if layout == "diffusers" else "model"
        files = place(
            [(t.name, d, t.shape) for t, d in zip(emitted, out_dtypes, strict=True)], stem=stem, shard_size=shard_size, metadata=metadata
        )
        jobs = _aim(jobs, emitted, files)
        small = _small_files(files, config if layout == "diffusers" else None) if folder else {}
        return Plan(
            self.recipe.title, show(self.recipe.root), self.pattern.family, layout, folder, inputs, tuple(jobs), tuple(files),
            metadata, small, config, self.recipe.seed, self.recipe.compute, _needs(jobs, files), text, self._notes(inputs),
        )  # fmt: skip

    def _layout(self) -> str:
        first = next(iter(self.bounds.values()))
        if first.layout == "structural":
            wanted = self.recipe.output.layout
            if wanted not in (None, "structural"):
                raise IncompatibleError(
                    "output.no-layout",
                    f"a {first.family} checkpoint has no {wanted} layout here: it is merged key by key",
                    fix="leave --layout out",
                )
            return "structural"
        if self.recipe.output.layout:
            return self.recipe.output.layout
        return "comfy" if first.layout == "bfl" and first.prefix == "model.diffusion_model." else first.layout

    def _shard_size(self, folder: bool) -> int | None:
        size = self.recipe.output.shard_size
        if size and self.output is not None and not folder:
            raise UsageError(
                "usage.shards-in-a-file", f"{self.output} is one file, but shards were asked for",
                fix=f"give a folder: -o {self.output.with_suffix('')}",
            )  # fmt: skip
        return size if folder else None

    def _notes(self, inputs: Sequence[Input]) -> tuple[str, ...]:
        notes: list[str] = []
        licenses = {i.license for i in inputs}
        if len(licenses) > 1 and "flux-1-dev-non-commercial-license" in licenses:
            notes.append("an input has the FLUX.1-dev licence, so the result is non-commercial")
        if self.pattern.layout == "structural" and self.pattern.family != "structural":
            notes.append(f"these look like {self.pattern.family} files; they are merged key by key, without layouts or blocks")
        return tuple(notes)


def _shape_error(key: str, one: str, a: Canonical, two: str, b: Canonical) -> IncompatibleError:
    return IncompatibleError(
        "model.wrong-shape",
        f"`{key}` has different shapes",
        facts={"key": key, one: list(a.shape), two: list(b.shape)},
        fix="merge checkpoints of one kind and size",
    )


def _rows(step: Step, start: int, stop: int) -> Step:
    if isinstance(step, Load):
        return Load(step.model, step.view.rows(start, stop))
    return Fill((stop - start, *step.shape[1:]), step.value) if isinstance(step, Fill) else step


def _job(tensor: Canonical, origin: int, shape: tuple[int, ...], program: tuple[Step, ...], reason: str) -> Job:
    action = "merged"
    if len(program) == 1:
        action = "copied" if isinstance(program[0], Load) else "filled"
    return Job(tensor.name, origin, shape, program, "", (), action, reason, tensor.block)


def _unify_dtypes(jobs: Sequence[Job], wanted: str | None) -> tuple[list[Job], dict[str, str]]:
    """The output type of every tensor: what is asked for, or the smallest that holds all that it is made of.

    Integer tensors cannot be averaged; they are copied from the first input that has them.
    Raises IncompatibleError where one input has integers and another has not, or has wider ones.
    """
    types: dict[str, set[str]] = {}
    for job in jobs:
        types.setdefault(job.tensor, set()).update(d for load in job.loads for d in load.view.dtypes)
    chosen: dict[str, str] = {}
    for name, found in types.items():
        floats = {d for d in found if DTYPES[d].is_float}
        if floats != found and len(found) > 1:
            loads = [load for job in jobs if job.tensor == name for load in job.loads]
            raise IncompatibleError(
                "model.wrong-dtype",
                f"`{name}` has types that cannot be merged: {', '.join(sorted(found))}",
                facts={"key": name, **{load.model: ", ".join(sorted(load.view.dtypes)) for load in loads}},
                fix="merge checkpoints of one kind; a rule `take` copies the tensor from one of them",
            )
        chosen[name] = next(iter(sorted(found))) if floats != found else wanted or promote(floats or {"BF16"})
    done: list[Job] = []
    for job in jobs:
        dtype = chosen[job.tensor]
        if job.loads and not DTYPES[dtype].is_float and job.action == "merged":
            job = replace(job, program=(job.loads[0],), action="copied", reason="not a float")
        elif job.action == "copied" and job.loads[0].view.dtypes != {dtype}:
            job = replace(job, action="converted")
        done.append(replace(job, dtype=dtype))
    return done, chosen


def _aim(jobs: Sequence[Job], emitted: Sequence[OutputTensor], files: Sequence[OutputFile]) -> list[Job]:
    """Give every job the places in the output files where its elements go."""
    entries = {key: (number, entry) for number, file in enumerate(files) for key, entry in file.tensors.items()}
    by_source: dict[str, list[tuple[int, int, int, int]]] = {}
    for tensor in emitted:
        number, entry = entries[tensor.name]
        width = DTYPES[entry.dtype].bits // 8
        for p in tensor.placements:
            by_source.setdefault(p.source, []).append((p.start, p.count, number, entry.start + p.at * width))
    aimed: list[Job] = []
    for job in jobs:
        width = DTYPES[job.dtype].bits // 8
        targets: list[Target] = []
        for start, count, number, offset in sorted(by_source[job.tensor]):
            first, last = max(start, job.origin), min(start + count, job.origin + job.count)
            if first < last:
                targets.append(Target(number, offset + (first - start) * width, first - job.origin, last - first))
        aimed.append(replace(job, targets=tuple(targets)))
    return aimed


def _input(name: str, bound: Bound, outcome: Mapping[str, int]) -> Input:
    checkpoint = bound.checkpoint
    guidance = bool(bound.dims["guidance"]) if "guidance" in bound.dims else None
    return Input(
        name, checkpoint.reference, bound.family, bound.layout, bound.prefix, guidance, len(checkpoint.tensors), checkpoint.nbytes,
        tuple(sorted(checkpoint.dtypes)), checkpoint.files, outcome, license_of(checkpoint),
    )  # fmt: skip


def _small_files(files: Sequence[OutputFile], config: Mapping[str, Any] | None) -> dict[str, str]:
    import json

    small = {"config.json": json.dumps(config, indent=2) + "\n"} if config else {}
    if len(files) > 1:
        stem = files[0].name.split("-0")[0]
        small[f"{stem}.safetensors.index.json"] = index_json(files)
    return small


def _needs(jobs: Sequence[Job], files: Sequence[OutputFile]) -> Needs:
    read = sum(load.view.nbytes for job in jobs for load in job.loads)
    written = sum(file.size for file in files)
    tile = max((program_tile_bytes(job) for job in jobs), default=0)
    return Needs(read, written, written, tile, max((whole_bytes(job) for job in jobs), default=0))
