"""What an output says of itself: ModelSpec, the recipe, the inputs and their hashes, in the safetensors metadata.

ModelSpec 1.0.1: https://github.com/Stability-AI/ModelSpec. The hashes are known only after the run; their places are
reserved with zeros of the same width, so that every offset is known beforehand. A date is written only where
SOURCE_DATE_EPOCH sets one: the bytes of an output are a function of recipe and inputs.
"""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fluxsmith.engine.plan import Input
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.layouts import Bound
from fluxsmith.layouts.configs import diffusers_config, rope_axes
from fluxsmith.recipes.recipe import Recipe
from fluxsmith.version import VERSION

__all__ = ["NO_HASH", "fill_hashes", "input_names", "license_of", "output_metadata", "recorded_inputs", "transformer_config"]

NO_HASH = "blake3:" + "0" * 64
_DEV = "flux-1-dev-non-commercial-license"
# Only references to the publishers' own repositories say a licence for sure; other inputs may record one.
_LICENSES = {"black-forest-labs/FLUX.1-schnell": "apache-2.0"} | {
    f"black-forest-labs/FLUX.1-{name}": _DEV for name in ("dev", "Krea-dev", "Kontext-dev", "Fill-dev", "Canny-dev", "Depth-dev")
}


def license_of(checkpoint: Checkpoint) -> str:
    """The licence that an input declares, or that its publisher's repository is known to have."""
    recorded = checkpoint.metadata.get("modelspec.license")
    return recorded or _LICENSES.get(checkpoint.reference.split("@")[0].split(":")[0], "unknown")


def output_metadata(recipe: Recipe, text: str, inputs: Sequence[Input], layout: str, config: Mapping[str, Any] | None) -> dict[str, str]:
    """The metadata of an output, hashes still zero. All values are strings, as the format demands."""
    data = {"format": "pt", "modelspec.sai_model_spec": "1.0.1"}
    if config is not None and config["_class_name"] == "FluxTransformer2DModel":
        data["modelspec.architecture"] = "flux-1-dev" if config["guidance_embeds"] else "flux-1"
        data["modelspec.implementation"] = "diffusers" if layout == "diffusers" else "https://github.com/black-forest-labs/flux"
    data["modelspec.title"] = recipe.title or "fluxsmith merge"
    data["modelspec.merged_from"] = ", ".join(i.reference.replace(",", "%2C") for i in inputs)
    licenses = {i.license for i in inputs}
    if licenses != {"unknown"}:
        data["modelspec.license"] = _DEV if _DEV in licenses else ", ".join(sorted(licenses))
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch:
        data["modelspec.date"] = datetime.fromtimestamp(int(epoch), UTC).isoformat()
    data["fluxsmith.version"] = VERSION
    data["fluxsmith.recipe"] = text
    if config is not None:
        data["fluxsmith.config"] = json.dumps(config, separators=(",", ":"))
    data["fluxsmith.inputs"] = _inputs_json(inputs, {})
    return {**data, **recipe.metadata}


def fill_hashes(metadata: Mapping[str, str], inputs: Sequence[Input], hashes: Mapping[str, str]) -> dict[str, str]:
    """The same metadata with the hashes of the input files (by path) in their places.

    Metadata without open places (of a reproduction, whose inputs were compared before) stay as they are.
    """
    if NO_HASH not in metadata["fluxsmith.inputs"]:
        return dict(metadata)
    return {**metadata, "fluxsmith.inputs": _inputs_json(inputs, hashes)}


def recorded_inputs(metadata: Mapping[str, str]) -> dict[str, list[dict[str, str]]]:
    """What a file's metadata say of its inputs: name -> files with `name`, `size` and `hash`."""
    try:
        return {entry["name"]: entry["files"] for entry in json.loads(metadata["fluxsmith.inputs"])}
    except (KeyError, ValueError, TypeError):
        return {}


def input_names(paths: Sequence[str]) -> dict[str, str]:
    """What the files of an input are called: their own names, after that of their folder where two would be one (pipelines)."""
    own = [os.path.basename(path) for path in paths]
    return {path: name if own.count(name) == 1 else "/".join(path.split("/")[-2:]) for path, name in zip(paths, own, strict=True)}


def _inputs_json(inputs: Sequence[Input], hashes: Mapping[str, str]) -> str:
    def entry(i: Input) -> dict[str, Any]:
        names = input_names([f.path for f in i.files])
        files = [{"name": names[f.path], "size": str(f.size), "hash": hashes.get(f.path, NO_HASH)} for f in i.files]
        return {"name": i.name, "reference": i.reference, "files": files}

    return json.dumps([entry(i) for i in inputs], separators=(",", ":"))


def _known_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The config.json beside a checkpoint, or the one that fluxsmith kept in a file of another layout."""
    try:
        return checkpoint.config or json.loads(checkpoint.metadata["fluxsmith.config"])
    except (KeyError, ValueError):
        return dict[str, Any]()


def transformer_config(bounds: Mapping[str, Bound], pattern: Bound, guidance: bool) -> dict[str, Any] | None:
    """The config.json of a transformer: from an input that has one, else from the shapes; None where there is no transformer."""
    dims = pattern.dims
    found = [_known_config(bound.checkpoint) for bound in bounds.values()]
    known: Mapping[str, Any] = next(filter(None, found), found[0])
    if pattern.family != "flux1" or "D" not in dims:
        return diffusers_config(pattern.family, {**dims, "guidance": int(guidance)}, known)
    head = dims["D"]
    config: dict[str, Any] = {
        "_class_name": "FluxTransformer2DModel",
        "attention_head_dim": head,
        "axes_dims_rope": known.get("axes_dims_rope") or rope_axes(head),
        "guidance_embeds": guidance,
        "in_channels": dims["in"],
        "joint_attention_dim": dims["ctx"],
        "num_attention_heads": dims["H"] // head,
        "num_layers": dims["double"],
        "num_single_layers": dims["single"],
        "out_channels": None if dims["in"] == dims["out"] else dims["out"],
        "patch_size": known.get("patch_size") or 1,
        "pooled_projection_dim": dims["vec"],
    }
    return config
