"""What comes with an adapter's tensors and says how they are meant: fields of the file's header, and PEFT's config.

Trainers put a module's scale in one of three places: in a tensor (alpha), in the header (diffusers:
`lora_adapter_metadata`, LyCORIS: `lycoris_config`, both JSON), or in adapter_config.json beside the file (PEFT).
"""

import json
from collections.abc import Mapping
from typing import Any, cast

from fluxsmith.errors import IncompatibleError
from fluxsmith.io.checkpoint import ADAPTER_CONFIG, Checkpoint

__all__ = ["DIFFUSERS", "LYCORIS", "PEFT", "Sidecar", "SidecarError", "read_sidecar", "software_of"]

#: Fields of a sidecar as plain data: strings of the header, and these, which are objects.
Sidecar = Mapping[str, Any]

DIFFUSERS = "lora_adapter_metadata"
LYCORIS = "lycoris_config"
PEFT = "adapter_config"
_JSON = (DIFFUSERS, LYCORIS, "software", "training_info")


class SidecarError(ValueError):
    """A sidecar that is not there, contradicts the tensors, or asks for what is not read.

    `code` is that of the error that a user sees, `facts` and `fix` belong to it.
    """

    def __init__(self, code: str, message: str, *, facts: Mapping[str, object] | None = None, fix: str) -> None:
        super().__init__(message)
        self.code, self.message, self.facts, self.fix = code, message, facts or {}, fix

    def of(self, file: str, module: str) -> IncompatibleError:
        """The error for a file, which the module showed."""
        facts = {"file": file, "module": module, **self.facts}
        return IncompatibleError(self.code, f"{file}: {self.message}", facts=facts, fix=self.fix)


def read_sidecar(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything that the header and adapter_config.json say, JSON in the fields that are known to have it parsed.

    Raises IncompatibleError where such a field is no JSON object.
    """
    found: dict[str, Any] = dict(checkpoint.metadata)
    for name in _JSON:
        if name in found:
            found[name] = _parsed(checkpoint, name)
    if checkpoint.adapter_config is not None:
        found[PEFT] = dict(checkpoint.adapter_config)
    return found


def _parsed(checkpoint: Checkpoint, name: str) -> Any:
    """An object; of fields that say nothing of the weights (software) also the text as it is."""
    text = checkpoint.metadata[name]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return cast("dict[str, Any]", value)
    if name not in (DIFFUSERS, LYCORIS):
        return text
    raise IncompatibleError(
        "adapter.bad-sidecar",
        f"`{name}` in the header of {checkpoint.reference} is not a JSON object",
        facts={"file": checkpoint.reference, "field": name, "found": text[:80]},
        fix=f"write the file again without it, or with the fields of {ADAPTER_CONFIG}",
    )


def software_of(sidecar: Sidecar) -> str:
    """The program that wrote the file, "" where it does not say."""
    software: Any = sidecar.get("software", "")
    name = cast("Mapping[str, Any]", software).get("name", "") if isinstance(software, Mapping) else software
    return str(name)
