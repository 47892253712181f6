"""The plan of a merge with the rest of some models copied beside it, and of recipes that only copy.

A plan is made for the merged part first; here the files are laid out anew with all that is copied, and the targets of
its jobs are moved to where their tensors lie now. What is copied is bytes of type U8, whatever they mean to others.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fluxsmith.engine.lineage import license_of, output_metadata
from fluxsmith.engine.memory import program_tile_bytes
from fluxsmith.engine.outputs import index_files
from fluxsmith.engine.plan import REST, Constant, Input, Job, Load, Needs, Plan, Target
from fluxsmith.engine.rest import SEPARATE, Source
from fluxsmith.errors import IncompatibleError, RecipeError, UsageError
from fluxsmith.io.shards import OutputFile, place
from fluxsmith.io.views import Extent, View
from fluxsmith.layouts import Table
from fluxsmith.layouts.ownership import place_of
from fluxsmith.recipes.formula import show
from fluxsmith.recipes.recipe import Recipe
from fluxsmith.recipes.saving import recipe_to_text

__all__ = ["with_rest"]

#: What the component's own files are called by those who publish and read them; of others by the component.
_FILES = {"t5": "t5xxl"}
_QUANTISATION = "_quantization_metadata"
_COPIED = f"copied ({REST})"


@dataclass(frozen=True)
class Copy:
    """A tensor that is copied: stored under `key`, written as `name` into the file of its component (None: of none)."""

    model: str
    key: str
    name: str
    component: str | None
    view: View

    @property
    def dtype(self) -> str:
        return next(iter(self.view.dtypes), "F32")


def with_rest(plan: Plan | None, recipe: Recipe, sources: Sequence[Source], table: Table, output: Path | None) -> Plan:
    """The plan of a merge (None: nothing is merged) with the rest of some models copied beside it.

    Raises UsageError where the output is of a format that does not hold it, IncompatibleError where two tensors have one place.
    """
    if output is not None and output.suffix == ".gguf":
        fix = f"-o {output.with_suffix('.safetensors')}"
        raise UsageError("usage.rest-in-gguf", "a GGUF file holds a transformer alone, nothing can be copied beside it", fix=fix)
    return _Copying(plan, recipe, sources, table, output).plan()


@dataclass
class _Copying:
    merged: Plan | None
    recipe: Recipe
    sources: Sequence[Source]
    table: Table
    output: Path | None

    @property
    def _separate(self) -> bool:
        return self.recipe.output.layout == SEPARATE

    @property
    def _is_folder(self) -> bool:
        return self.output is not None and self.output.suffix != ".safetensors"

    def plan(self) -> Plan:
        """The whole plan."""
        inputs = self._inputs()
        text = recipe_to_text(self.recipe)
        layout = str(self.recipe.output.layout)
        config = self.merged.config if self.merged else None
        known = self.merged.metadata if self.merged else {}
        metadata = {**known, **output_metadata(self.recipe, text, inputs, layout, config)}
        files = self._files(metadata)
        moved, constants = self._moved(files)
        jobs = (*moved, *self._copied_jobs(files))
        needs = _needs(self.merged, jobs, files)
        small = {name: text for name, text in (self.merged.small_files if self.merged else {}).items() if name == "config.json"}
        copied = f"the rest of {', '.join(source.name for source in self.sources)}"
        if self.merged is None:
            title, family, seed, compute = self.recipe.title, self.table.family, self.recipe.seed, self.recipe.compute
            return Plan(
                title, copied, family, layout, self._is_folder, inputs, jobs, tuple(files), metadata, {}, None, seed, compute, needs, text
            )
        return replace(
            self.merged, formula=f"{show(self.recipe.root)}, {copied}", inputs=inputs, jobs=jobs, files=tuple(files), metadata=metadata,
            needs=needs, recipe=text, constants=tuple(constants), small_files={**small, **index_files(files)} if self._is_folder else {},
        )  # fmt: skip

    @cached_property
    def copies(self) -> tuple[Copy, ...]:
        """Everything that is copied; raises IncompatibleError where two sources have one tensor."""
        found: dict[str, Copy] = {}
        for source in self.sources:
            for key, view in source.checkpoint.tensors.items():
                if source.outcome(key, self.recipe.components) != "copied":
                    continue
                copy = self._copy(source, key, view)
                other = found.setdefault(copy.name if not self._separate else f"{copy.component}/{copy.name}", copy)
                if other is not copy:
                    raise _twice(copy, other)
        return tuple(found.values())

    def _copy(self, source: Source, key: str, view: View) -> Copy:
        owner = source.owners.component(key)
        if owner is None or (source.owners.whole and not self._separate):
            name = key
        else:
            name = ("" if self._separate else place_of(self.table, owner)) + source.owners.bare(key)
        return Copy(source.name, key, name, owner, view)

    def _names(self) -> dict[str, str]:
        """New names of merged tensors: a source that is an all-in-one file says what stands before its components' keys."""
        whole = [source.owners.places for source in self.sources if source.owners.whole]
        places = {place_of(self.table, name): places[name] for places in whole for name in self.recipe.components if name in places}
        names: dict[str, str] = {}
        for file in self.merged.files if self.merged else ():
            for key in file.tensors:
                written = max((place for place in places if key.startswith(place)), key=len, default="")
                names[key] = places.get(written, written) + key[len(written) :]
        return names

    def _files(self, metadata: Mapping[str, str]) -> list[OutputFile]:
        if self._separate:
            return self._separate_files(metadata)
        names = self._names()
        merged = [
            (names[key], entry.dtype, entry.shape)
            for file in (self.merged.files if self.merged else ())
            for key, entry in file.tensors.items()
        ]
        entries = [*merged, *((copy.name, copy.dtype, copy.view.shape) for copy in self.copies)]
        twice = {name for name, _, _ in merged} & {copy.name for copy in self.copies}
        if twice:
            copy = next(copy for copy in self.copies if copy.name in twice)
            raise _twice(copy, None)
        stem = self.output.stem if self.output and not self._is_folder else "model"
        own = _quantisation(metadata.get(_QUANTISATION, "") if self.merged else "", self.sources, self.copies)
        size = self.recipe.output.shard_size if self._is_folder else None
        files = place(entries, stem=stem, shard_size=size, metadata={**metadata, **own})
        return [replace(file, metadata=own) for file in files]

    def _separate_files(self, metadata: Mapping[str, str]) -> list[OutputFile]:
        """One file for every component, each with a recipe that makes this one again."""
        self._check_unknown()
        grouped: dict[str | None, list[Copy]] = {}
        for copy in self.copies:
            grouped.setdefault(copy.component, []).append(copy)
        if not self._is_folder and self.output is not None and len(grouped) > 1:
            raise UsageError(
                "usage.components-in-a-file",
                f"{self.output} is one file, but there are {len(grouped)} components",
                facts={"components": ", ".join(component or REST for component in grouped)},
                fix=f"give a folder: -o {self.output.with_suffix('')}",
            )
        files: list[OutputFile] = []
        for component, copies in grouped.items():
            own = {"fluxsmith.recipe": self._recipe_of(component), **_quantisation("", self.sources, copies)}
            own = {key: text for key, text in own.items() if key not in self.recipe.metadata}
            entries = [(copy.name, copy.dtype, copy.view.shape) for copy in copies]
            placed = place(entries, stem=self._stem(component), shard_size=None, metadata={**metadata, **own})
            files += [replace(file, metadata=own) for file in placed]
        return files

    def _stem(self, component: str | None) -> str:
        """What the file of a component is called: by the output's own name where it is one file."""
        if not self._is_folder and self.output is not None:
            return self.output.stem
        if component == "vae" and self.table.layouts[0] == "bfl":
            return "ae"
        return _FILES.get(component or REST, component or REST)

    def _recipe_of(self, component: str | None) -> str:
        rest = tuple(replace(source.model, components=(component or REST,)) for source in self.sources)
        return recipe_to_text(replace(self.recipe, rest=rest))

    def _check_unknown(self) -> None:
        """Keys of no component are nobody's file: they are asked for by name, or left out by name."""
        stray = [copy for copy in self.copies if copy.component is None]
        for source in self.sources:
            keys = [copy.key for copy in stray if copy.model == source.name]
            if keys and REST not in source.model.components:
                known = ",".join(source.owners.places)
                raise IncompatibleError(
                    "split.unknown-keys",
                    f"{len(keys)} of {len(source.checkpoint.tensors)} keys of {source.model.reference} belong to no component",
                    facts={"file": source.model.reference, "first": "\n".join(keys[:10])},
                    fix=f"--only {known},{REST} puts them into {REST}.safetensors;  --only {known} leaves them out",
                )

    def _moved(self, files: Sequence[OutputFile]) -> tuple[list[Job], list[Constant]]:
        """The jobs of the merge and its constant bytes with their targets where the tensors lie now."""
        if self.merged is None:
            return [], []
        names = self._names()
        starts = {key: (number, entry.start) for number, file in enumerate(files) for key, entry in file.tensors.items()}
        filled = [[(key, entry) for key, entry in file.tensors.items() if entry.stop > entry.start] for file in self.merged.files]
        spans = [sorted((entry.start, names[key]) for key, entry in entries) for entries in filled]

        def at(file: int, offset: int) -> tuple[int, int]:
            start, name = spans[file][bisect_right(spans[file], offset, key=lambda span: span[0]) - 1]
            number, begin = starts[name]
            return number, begin + offset - start

        def moved(target: Target) -> Target:
            number, offset = at(target.file, target.offset)
            return replace(target, file=number, offset=offset, scale=target.scale and at(*target.scale))

        jobs = [replace(job, targets=tuple(moved(target) for target in job.targets)) for job in self.merged.jobs]
        return jobs, [Constant(*at(constant.file, constant.offset), constant.digits) for constant in self.merged.constants]

    def _copied_jobs(self, files: Sequence[OutputFile]) -> list[Job]:
        """Jobs that copy bytes, whatever they mean."""
        where = {
            (file.name if self._separate else "", key): (number, entry.start)
            for number, file in enumerate(files)
            for key, entry in file.tensors.items()
        }
        jobs: list[Job] = []
        for copy in self.copies:
            size = copy.view.nbytes
            number, at = where[f"{self._stem(copy.component)}.safetensors" if self._separate else "", copy.name]
            stored = View((size,), tuple(Extent(e.file, e.offset, e.nbytes, "U8") for e in copy.view.extents))
            targets = (Target(number, at, 0, size),) if size else ()
            jobs.append(Job(copy.name, 0, (size,), (Load(copy.model, stored),), "U8", targets, "copied", REST))
        return jobs

    def _inputs(self) -> tuple[Input, ...]:
        found = {i.name: i for i in (self.merged.inputs if self.merged else ())}
        for source in self.sources:
            outcomes = [source.outcome(key, self.recipe.components) for key in source.checkpoint.tensors]
            if "copied" not in outcomes:
                raise RecipeError(
                    "recipe.no-contribution",
                    f"nothing of `{source.name}` is copied: the merge makes all that it has",
                    at=source.model.at,
                    fix="leave the rest out, or name fewer `components` to make",
                )
            found[source.name] = (
                _noted(found[source.name], source, self.recipe.components) if source.name in found else _as_input(source, outcomes)
            )
        return tuple(found.values())


def _twice(copy: Copy, other: Copy | None) -> IncompatibleError:
    """Two tensors for one place."""
    who = f"{copy.model} and {other.model}" if other else f"{copy.model} and the merge"
    return IncompatibleError(
        "rest.twice",
        f"{who} both give `{copy.name}`" + (f", a tensor of the {copy.component}" if copy.component else ""),
        facts={"key": copy.name},
        fix="name the `components` that one of them gives, or leave it out",
    )


def _quantisation(known: str, sources: Sequence[Source], copies: Sequence[Copy]) -> dict[str, str]:
    """What the headers of the sources say of the quantisation of layers that are copied, by the layers' new names, with
    what is `known` of the layers that are merged.

    ComfyUI's `_quantization_metadata`: {"format_version": ..., "layers": {name: {"format": ...}}}.
    """
    found: dict[str, Any] = json.loads(known) if known else {}
    layers: dict[str, Any] = found.pop("layers", {})
    for source in sources:
        text = source.checkpoint.metadata.get(_QUANTISATION)
        if text is None:
            continue
        try:
            fields = json.loads(text)
            described = dict(fields.pop("layers"))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise IncompatibleError(
                "rest.bad-quantisation",
                f"{source.model.reference} has metadata `{_QUANTISATION}` that cannot be read",
                facts={"file": source.model.reference},
                fix="use a file that ComfyUI loads",
            ) from None
        found |= fields
        for copy in copies:
            layer, _, last = copy.key.rpartition(".")
            if copy.model == source.name and layer in described:
                layers[copy.name.removesuffix(f".{last}")] = described[layer]
    return {_QUANTISATION: json.dumps({**found, "layers": layers}, separators=(",", ":"))} if layers else {}


def _as_input(source: Source, outcomes: Sequence[str]) -> Input:
    """A model of which only the rest is taken."""
    checkpoint, owners = source.checkpoint, source.owners
    return Input(
        source.name, checkpoint.reference, owners.table.family if owners.table else "structural", owners.layout or "structural", "", None,
        len(checkpoint.tensors), checkpoint.nbytes, tuple(sorted(checkpoint.dtypes)), checkpoint.files,
        _counted(outcomes), license_of(checkpoint),
    )  # fmt: skip


def _noted(found: Input, source: Source, made: Sequence[str]) -> Input:
    """An input of the merge whose other keys are copied: they are no longer dropped by the rule that names components."""
    counts = dict(found.outcome)
    for key in source.checkpoint.tensors:
        if source.outcome(key, made) == "copied":
            reason = (source.owners.table.why_dropped(key) if source.owners.table else None) or source.rule(made)
            counts[f"dropped ({reason})"] = counts.get(f"dropped ({reason})", 0) - 1
            counts[_COPIED] = counts.get(_COPIED, 0) + 1
    return replace(found, outcome={label: count for label, count in counts.items() if count > 0})


def _counted(outcomes: Sequence[str]) -> dict[str, int]:
    named = [_COPIED if outcome == "copied" else outcome for outcome in outcomes]
    return {outcome: named.count(outcome) for outcome in dict.fromkeys(named)}


def _needs(merged: Plan | None, jobs: Sequence[Job], files: Sequence[OutputFile]) -> Needs:
    """What the merge takes and what copying adds."""
    read = sum(load.view.nbytes for job in jobs for load in job.loads)
    written = sum(file.size for file in files)
    tile = max((program_tile_bytes(job) for job in jobs), default=0)
    return Needs(read, written, written, tile, merged.needs.whole_bytes if merged else 0)
