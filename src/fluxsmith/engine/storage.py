"""In what types a result is stored: as the inputs are, as one type, or with its weights quantised in a scheme."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fluxsmith.engine.plan import Constant, Job, Scaling
from fluxsmith.errors import IncompatibleError, RecipeError, UsageError
from fluxsmith.io.checkpoint import PARTS
from fluxsmith.io.dtypes import BLOCK_TYPES, DTYPES, promote
from fluxsmith.io.gguf_header import GGUF_TYPES
from fluxsmith.io.schemes import SCHEMES, Extra, Scheme, output_type_name
from fluxsmith.io.schemes.recognition import scheme_of
from fluxsmith.io.shards import FileFormat, OutputFile
from fluxsmith.layouts import Bound, Canonical, table_of
from fluxsmith.layouts.emission import COMFY_PREFIX, OutputTensor
from fluxsmith.layouts.structural import KEYWISE
from fluxsmith.recipes.recipe import OutputOptions

__all__ = ["Beside", "Storage", "constants", "container_of", "unify_dtypes"]

#: The extra tensors of every quantised output tensor, by its name.
Beside = Mapping[str, Sequence[Extra]]

#: What GGUF files of image models call their architecture (ComfyUI-GGUF, diffusers).
_ARCHITECTURES = {"flux1": "flux", "flux2": "flux", "chroma": "flux"}
_DENOISERS = ("transformer", "unet")
#: Tensors of at most so many elements are never quantised (1024 in GGUF files of image models).
_SMALL = 1024


def container_of(output: Path | None) -> FileFormat:
    """The format of the output's files."""
    return "gguf" if output is not None and output.suffix == ".gguf" else "safetensors"


@dataclass(frozen=True)
class Storage:
    """How the tensors of one output are stored. `wanted` is the one element type that was asked for, `scheme` how weights
    are quantised, `rest` the type of all others (None: what the inputs have), `note` what the user should know of that.

    Quantised are the matrices of the blocks of a transformer or UNet; biases, norms, embedders, the first and the last
    layers, small tensors and matrices of no whole number of blocks keep the type that the inputs have, at least bf16.
    """

    scheme: Scheme | None
    wanted: str | None
    container: FileFormat
    family: str
    rest: str | None = None
    note: str = ""

    @classmethod
    def of(cls, options: OutputOptions, first: Bound, output: Path | None) -> Storage:
        """What the options of an output mean for a result like the first input.

        Where no type is asked for, the result is stored as the first input is: in its scheme, where the output's files can
        hold that. Raises UsageError where the output's file cannot hold what is asked for, IncompatibleError where the
        family cannot be stored so.
        """
        name, container = options.dtype, container_of(output)
        if name is None and first.checkpoint.quantised is not None and output is not None:
            return cls._like(first, options, output)
        scheme = SCHEMES.get(name) if name else None
        storage = cls(scheme, None if scheme else name, container, first.family, _rest(first))
        storage._check_container(output)
        storage._check_family(first)
        storage._check_layout(options)
        return storage

    @classmethod
    def _like(cls, first: Bound, options: OutputOptions, output: Path) -> Storage:
        """Quantised as the first input is where that can be written here, else as the values are; the note says so."""
        assert first.checkpoint.quantised is not None
        container = container_of(output)
        name = scheme_of(first.checkpoint)
        storage = cls(SCHEMES.get(name or ""), None, container, first.family, _rest(first))
        try:
            storage._check_container(output)
            storage._check_family(first)
            storage._check_layout(options)
            storage.quantised([first.spec[name] for name in first.views], OutputOptions())
        except (UsageError, IncompatibleError):
            storage = replace(storage, scheme=None)
            storage._check_family(first)
            storage._check_layout(options)
        if storage.scheme is None:
            stored = first.checkpoint.quantised.scheme
            return replace(
                storage, note=f"the first input is stored as {stored}, the result is not quantised: --dtype says how it is to be"
            )
        return storage

    @property
    def layout(self) -> str | None:
        """The layout that the files demand."""
        if self.container == "gguf":
            return "bfl"
        return "diffusers" if self.scheme and self.scheme.container == "diffusers" else None

    def _check_container(self, output: Path | None) -> None:
        name, scheme = self.scheme.name if self.scheme else self.wanted, self.scheme
        if output is None:
            return
        if self.container == "gguf":
            known = scheme.container == "gguf" if scheme else self.wanted is None or self.wanted in GGUF_TYPES
            if not known:
                raise UsageError(
                    "usage.not-in-gguf", f"a GGUF file cannot hold {output_type_name(name or '')}", facts={"output": output},
                    fix="--dtype q8_0, q4_0, bf16, fp16 or fp32, or an output that ends in .safetensors",
                )  # fmt: skip
        elif scheme and scheme.container == "gguf":
            fix = f"-o {output.with_suffix('.gguf')}, or --dtype fp8_scaled"
            raise UsageError("usage.only-in-gguf", f"{name} is a type of GGUF files, {output} is none", fix=fix)
        elif scheme and scheme.container == "diffusers" and output.suffix == ".safetensors":
            fix = f"-o {output.with_suffix('')}"
            raise UsageError("usage.needs-a-folder", f"{name} needs a diffusers folder with a config.json, {output} is a file", fix=fix)

    def _check_layout(self, options: OutputOptions) -> None:
        if self.layout is not None and options.layout not in (None, self.layout):
            what = self.scheme.name if self.scheme else "a GGUF file"
            fix = f"--layout {self.layout}, or leave it out"
            raise UsageError("usage.other-layout", f"{what} has the {self.layout} layout, not {options.layout}", fix=fix)
        if self.scheme is None and options.unquantised:
            raise UsageError(
                "usage.unquantised",
                f"`{options.unquantised[0].text}` is to stay unquantised in an output that is not quantised",
                fix="leave it out, or quantise the rest: --dtype fp8_scaled",
            )

    def _check_family(self, first: Bound) -> None:
        facts = {"family": first.family}
        if self.container == "gguf" and first.family not in _ARCHITECTURES:
            raise IncompatibleError(
                "output.no-gguf", f"{first.family} has no GGUF form that programs agree on", facts=facts, fix="-o FILE.safetensors"
            )
        if self.scheme and first.layout in KEYWISE:
            raise IncompatibleError(
                "output.nothing-to-quantise",
                f"{self.scheme.name} quantises the blocks of a known family; this checkpoint is merged key by key",
                facts=facts,
                fix="--dtype fp8_e4m3 rounds every tensor",
            )

    def quantised(self, tensors: Sequence[Canonical], options: OutputOptions) -> frozenset[str]:
        """The names of the tensors that are quantised.

        Raises RecipeError where a selector of `unquantised` matches nothing, IncompatibleError where there is nothing to quantise.
        """
        if self.scheme is None:
            return frozenset()
        for selector in options.unquantised:
            if not any(selector.matches(tensor) for tensor in tensors):
                fix = "fluxsmith inspect FILE --keys '*' shows the names"
                raise RecipeError(
                    "recipe.selector-without-match", f"`{selector.text}` matches no tensor of this model", at=selector.at, fix=fix
                )
        found = frozenset(t.name for t in tensors if self._fits(t) and not any(s.matches(t) for s in options.unquantised))
        if not found:
            raise IncompatibleError(
                "output.nothing-to-quantise",
                f"{self.scheme.name} would quantise nothing: it is for the matrices of a transformer's or UNet's blocks",
                facts={"tensors": len(tensors), "left out by a selector": len([t for t in tensors if self._fits(t)])},
                fix="--dtype fp8_e4m3 rounds every tensor",
            )
        return found

    def _fits(self, tensor: Canonical) -> bool:
        inside = tensor.component in _DENOISERS and tensor.block is not None
        matrix = len(tensor.shape) == 2 and tensor.name.endswith("weight") and tensor.count > _SMALL
        block = BLOCK_TYPES[self.scheme.dtype].block if self.scheme and self.scheme.dtype in BLOCK_TYPES else 1
        return inside and matrix and tensor.shape[1] % block == 0

    def dtype(self, tensor: Canonical, floats: set[str], quantised: frozenset[str]) -> str:
        """The type in which a tensor is stored, some of whose inputs have these float types."""
        if self.scheme and tensor.name in quantised:
            return self.scheme.dtype
        if self.container == "gguf" and (len(tensor.shape) < 2 or tensor.count <= _SMALL):
            return "F32"
        kept = self.wanted or self.rest or promote(floats or {"BF16"})
        if self.container == "gguf":
            return kept if kept in GGUF_TYPES else "F32" if DTYPES[kept].bits > 16 else "BF16"
        rough = self.scheme is not None and tensor.component in _DENOISERS and DTYPES[kept].bits < 16
        return "BF16" if rough else kept

    def scale(self, job: Job, shape: tuple[int, ...], quantised: frozenset[str]) -> Job:
        """The job with the scaling that the scheme gives to tensors of this shape."""
        if self.scheme is None or self.scheme.per is None or job.tensor not in quantised:
            return job
        action = "converted" if job.action == "copied" else job.action
        return replace(job, scaling=Scaling(self.scheme.per(shape), self.scheme.scale_dtype), action=action)

    def beside(self, emitted: Sequence[OutputTensor], quantised: frozenset[str]) -> Beside:
        """The extra tensors of every quantised output tensor, by its name; the file's marker stands beside the first.

        Raises IncompatibleError where the tensors lie in the folders of a pipeline, which nothing reads quantised so.
        """
        found: dict[str, tuple[Extra, ...]] = {}
        for tensor in emitted:
            if self.scheme and tensor.placements[0].source in quantised:
                if tensor.name.split("/")[0] in PARTS:
                    table = table_of(self.family)
                    raise IncompatibleError(
                        "output.scheme-in-a-pipeline",
                        f"no program reads the folders of a {self.family} pipeline as {self.scheme.name}",
                        facts={"key": tensor.name},
                        fix=f"--layout {table.layouts[0] if table else 'ldm'}, whose one file ComfyUI reads, or --dtype fp8_e4m3",
                    )
                extras = self.scheme.beside(tensor.name, tensor.shape)
                if self.scheme.marker and not found:
                    extras = (*extras, self.scheme.marker(COMFY_PREFIX if tensor.name.startswith(COMFY_PREFIX) else ""))
                found[tensor.name] = extras
        return found

    def rename(self, emitted: Sequence[OutputTensor], beside: Beside) -> tuple[list[OutputTensor], Beside]:
        """Output tensors and what is beside them under the names that the scheme gives to quantised tensors."""
        if self.scheme is None:
            return list(emitted), beside
        names = {name: self.scheme.rename(name) for name in beside}
        return [replace(t, name=names.get(t.name, t.name)) for t in emitted], {names[name]: extras for name, extras in beside.items()}

    def metadata(self, emitted: Sequence[OutputTensor], beside: Beside, known: Mapping[str, str]) -> dict[str, str]:
        """The metadata of the output's files: those that are `known`, and what the format and the scheme add."""
        if self.container == "gguf":
            own = {key: text for key, text in known.items() if key != "format" and not key.startswith("general.")}
            return {"general.architecture": _ARCHITECTURES[self.family], **own}
        own = self.scheme.metadata([(t.name, t.shape, t.name in beside) for t in emitted]) if self.scheme else {}
        return {**known, **own}

    def config(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a config.json with what the scheme adds."""
        return {**known, **(self.scheme.config if self.scheme else {})}


def _rest(first: Bound) -> str | None:
    """GGUF files keep biases and norms in float32, whatever the model was; in other files they are as the weights are."""
    gguf = any(extent.codec and extent.codec.scheme == "gguf" for view in first.views.values() for extent in view.extents)
    return "BF16" if gguf else None


def unify_dtypes(jobs: Sequence[Job], choose: Callable[[str, set[str]], str], models: Container[str]) -> tuple[list[Job], dict[str, str]]:
    """The output type of every tensor: what `choose(name, types)` says for the float types of the tensors of all `models`
    that it is made of; numbers that are no weights (masks, importances) have no say.

    Integer tensors cannot be averaged; they are copied from the first input that has them.
    Raises IncompatibleError where one input has integers and another has not, or has wider ones.
    """
    types: dict[str, set[str]] = {}
    for job in jobs:
        types.setdefault(job.tensor, set()).update(d for load in job.loads if load.model in models for d in load.view.dtypes)
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
        chosen[name] = choose(name, floats) if floats == found else min(found)
    numbers = {name for name, found in types.items() if not all(DTYPES[d].is_float for d in found)}
    done: list[Job] = []
    for job in jobs:
        dtype = chosen[job.tensor]
        if job.tensor in numbers and job.loads and job.action == "merged":
            job = replace(job, program=(job.loads[0],), action="copied", reason="not a float")
        elif job.action == "copied" and (job.loads[0].view.transposed or not job.loads[0].view.stores(dtype)):
            job = replace(job, action="converted")
        done.append(replace(job, dtype=dtype))
    return done, chosen


def constants(beside: Beside, files: Sequence[OutputFile]) -> tuple[Constant, ...]:
    """The bytes of extra tensors that are known beforehand, at their places."""
    data = {extra.name: extra.data for extras in beside.values() for extra in extras if extra.data}
    return tuple(
        Constant(number, entry.start, data[name].hex())
        for number, file in enumerate(files)
        for name, entry in file.tensors.items()
        if name in data
    )
