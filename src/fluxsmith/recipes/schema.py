"""The YAML of a recipe as strict models: fields, types and documentation, for checking and for editors."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fluxsmith.config import Strict

__all__ = ["InputEntry", "ModelEntry", "OutputEntry", "RecipeFile", "RuleEntry", "StepEntry"]


class ModelEntry(Strict):
    """A checkpoint with more than its reference, an adapter, or another recipe."""

    checkpoint: str | None = Field(default=None, description="file, folder, or org/name[@revision][:path]")
    adapter: str | None = Field(
        default=None, description="an adapter (LoRA and its kin), which is a delta: file, PEFT folder or Hub reference"
    )
    weight: Any = Field(default=1.0, description="of an adapter: its strength, a number or a map from selectors to numbers or ramps")
    base: str | None = Field(default=None, description="of an adapter: the model or step whose weights DoRA, OFT, ... read")
    alpha: float | None = Field(default=None, description="of an adapter: for modules whose alpha neither the file nor its sidecar says")
    ignore: list[str] = Field(default=[], description="of an adapter: globs of keys that are left out by this rule")
    recipe: str | None = Field(default=None, description="another recipe file, whose result is this model; nothing is written for it")
    components: list[str] = Field(
        default=[], description="take only these parts of an all-in-one file; the others are dropped by this rule"
    )
    holds: Literal["weight", "delta", "param"] = Field(
        default="weight", description="what the tensors are: weights, differences, or numbers such as masks and importances"
    )


class _Options(BaseModel):
    """The other fields of an entry are the options of its method; the method checks them."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


class InputEntry(_Options):
    """A merge input: a model or step, with its weight and the other options that the method has per input."""

    model: str = Field(description="name of a model or step")
    weight: Any = Field(default=1.0, description="a number, or a map from selectors to numbers or ramps")


class RuleEntry(_Options):
    """In place of the merge, for the tensors that `match` selects."""

    match: str = Field(description="block, part, glob or re:...")
    take: str | None = Field(default=None, description="copy from this model or step")
    method: str | None = None
    base: str | None = None
    inputs: list[str | InputEntry] | None = None
    formula: str | None = None


class StepEntry(_Options):
    """A method with its inputs, or a formula."""

    method: str | None = None
    base: str | None = None
    inputs: list[str | InputEntry] | None = None
    formula: str | None = Field(default=None, description="for example `0.7*dev + 0.3*krea`")
    literal: Any = Field(default=None, description="a number, or a map from selectors to numbers or ramps, as a tensor of numbers")
    rules: list[RuleEntry] = []
    guidance: str | None = Field(default=None, description="keep, drop, zero, bake(3.5) or from(MODEL)")
    missing: Literal["error", "skip", "base"] = Field(
        default="error", description="where an input lacks a tensor: stop, average the others, or take the base's"
    )
    components: list[str] = Field(default=[], description="make only these (transformer, vae, clip_l, ...) of all-in-one files")
    rest: str | list[str] | None = Field(
        default=None, description="model(s) of which everything that the merge does not make is copied as it is, byte for byte"
    )


class OutputEntry(Strict):
    """How the result is written."""

    layout: Literal["bfl", "diffusers", "comfy", "ldm", "sgm", "transformers", "structural", "separate"] | None = None
    dtype: (
        Literal[
            "bf16",
            "fp16",
            "fp32",
            "fp8_e4m3",
            "fp8_e5m2",
            "fp8_scaled",
            "fp8_scaled_e5m2",
            "fp8_comfy",
            "fp8_comfy_e5m2",
            "fp8_channel",
            "fp8_channel_e5m2",
            "fp8_block",
            "fp8_block_e5m2",
            "int8_torchao",
            "q8_0",
            "q4_0",
        ]
        | None
    ) = Field(default=None, description="an element type, or a scheme by which weights are quantised")
    shard_size: str | int | None = Field(default=None, description="largest file, such as 10GB")
    unquantised: list[str] = Field(default=[], description="with a scheme: selectors of tensors that keep the type of the inputs")


class RecipeFile(Strict):
    """A fluxsmith recipe."""

    fluxsmith: Literal[1] = Field(description="version of this format")
    title: str = ""
    include: list[str] = Field(default=[], description="files whose models and steps are known here, relative to this file")
    models: dict[str, str | ModelEntry] = Field(default={}, description="name: reference")
    steps: dict[str, StepEntry | str] = Field(default={}, description="named intermediate results; nothing is written for them")
    merge: StepEntry | str | None = Field(default=None, description="the result: a method with inputs, or a formula")
    output: OutputEntry = OutputEntry()
    seed: int = 0
    compute: Literal["fp32", "fp16", "bf16"] = "fp32"
    structural: bool = Field(default=False, description="merge key by key, without knowing the family")
    strip: str = Field(default="", description="with `structural`: a prefix taken off every key")
