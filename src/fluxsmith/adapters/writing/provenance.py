"""What a written adapter says of itself: ModelSpec, the few fields that loaders look at, and what it was made from.

ModelSpec 1.0.1 (https://github.com/Stability-AI/ModelSpec) calls an adapter `<architecture>/lora`, whatever its algorithm.
What the source said is kept, but for what describes its container or its bytes, which are other ones now.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxsmith.adapters.dialects import Dialect
from fluxsmith.adapters.module import Adapter
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.hashing import content_hash
from fluxsmith.version import VERSION

__all__ = ["RECORD", "adapter_metadata", "dropped_metadata", "recorded"]

#: The field that says what was done, as JSON: the command, its options and its inputs.
RECORD = "fluxsmith.adapter"

#: Of a source's metadata, what is not true of a copy in another container: hashes, and how its tensors were stored.
_STALE = (
    "format", "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "lora_adapter_metadata", "lycoris_config",
    "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args", "modelspec.implementation", "modelspec.architecture",
    "modelspec.sai_model_spec", "fluxsmith.version", RECORD,
)  # fmt: skip

_ARCHITECTURES = {
    "flux1": "flux-1-dev", "flux2": "flux-2-dev", "chroma": "chroma", "sd15": "stable-diffusion-v1", "sdxl": "stable-diffusion-xl-v1-base",
    "sd3": "stable-diffusion-3-medium",
}  # fmt: skip
_BASE_VERSIONS = {"flux1": "flux1", "flux2": "flux2", "chroma": "chroma", "sd15": "sd_v1", "sdxl": "sdxl_base_v1-0", "sd3": "sd3_m"}


def adapter_metadata(
    family: str, dialect: Dialect, *, title: str, command: str, options: Mapping[str, Any], inputs: Sequence[Checkpoint] = ()
) -> dict[str, str]:
    """The metadata of an adapter that is made from `inputs` by a command with these options; all values are strings.

    The files of the inputs are hashed. Fields of the first input that are still true are kept.
    """
    kept = {key: value for key, value in (inputs[0].metadata.items() if inputs else ()) if key not in _STALE}
    diffusers = dialect.writing is not None and dialect.writing.layout == "diffusers"
    data = {"modelspec.sai_model_spec": "1.0.1", "modelspec.title": title}
    if family in _ARCHITECTURES:
        data["modelspec.architecture"] = f"{_ARCHITECTURES[family]}/lora"
        data["modelspec.implementation"] = "diffusers" if diffusers else "https://github.com/black-forest-labs/flux"
        data["ss_base_model_version"] = _BASE_VERSIONS[family]
    record = {"command": command, "options": dict(options), "inputs": [_input(checkpoint) for checkpoint in inputs]}
    return {**data, **kept, "fluxsmith.version": VERSION, RECORD: json.dumps(record, separators=(",", ":"), default=str)}


def _input(checkpoint: Checkpoint) -> dict[str, Any]:
    files = [{"name": Path(f.path).name, "size": str(f.size), "hash": content_hash(f.path)} for f in checkpoint.files if f.remote is None]
    return {"reference": checkpoint.reference, "files": files}


def dropped_metadata(adapter: Adapter) -> list[str]:
    """The fields of an adapter's metadata that a converted copy does not have."""
    return sorted(key for key in adapter.checkpoint.metadata if key in _STALE and key != "format")


def recorded(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a written adapter says it was made from; empty where it says nothing that can be read."""
    try:
        found = json.loads(metadata.get(RECORD, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
