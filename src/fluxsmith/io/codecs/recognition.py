"""What recognising a scheme gives, and the errors that all schemes share."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fluxsmith.errors import FileError, IncompatibleError
from fluxsmith.hub import HubReference, parse_reference
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.numbers import read_bytes
from fluxsmith.io.views import Extent, View

__all__ = ["FIX", "Recognised", "bad_side", "contents", "is_remote", "lone_extent", "missing_half", "not_read", "with_suffix"]

FIX = "use the complete file, or the bf16 checkpoint that it was made from"


@dataclass
class Recognised:
    """What one scheme makes of a checkpoint: views of values by the weights' own keys, the keys of sides, and keys that
    say nothing of the weights, with what they are. `replaces` are stored keys whose name is not the weight's own.
    """

    scheme: str
    views: dict[str, View] = field(default_factory=dict[str, View])
    sides: set[str] = field(default_factory=set[str])
    dropped: dict[str, str] = field(default_factory=dict[str, str])
    replaces: dict[str, str] = field(default_factory=dict[str, str])


def with_suffix(tensors: Mapping[str, View], suffixes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs (what stands before the suffix, key) of the keys that end in one of them."""
    for key in tensors:
        suffix = next((suffix for suffix in suffixes if key.endswith(suffix)), None)
        if suffix is not None:
            yield key.removesuffix(suffix), key


def lone_extent(view: View) -> Extent:
    """The one extent of a stored tensor; that of one without elements begins nowhere."""
    return view.extents[0]


def is_remote(checkpoint: Checkpoint) -> bool:
    """Whether only headers of it are on this machine."""
    return any(file.remote for file in checkpoint.files)


def contents(checkpoint: Checkpoint, key: str) -> bytes:
    """The bytes of a small tensor; raises FileError where it is not on this machine."""
    if is_remote(checkpoint):
        place = parse_reference(checkpoint.reference)
        raise FileError(
            "file.needs-download",
            f"how {checkpoint.reference} is quantised stands in its tensors, of which only the names are here",
            facts={"file": checkpoint.reference, "key": key},
            fix=place.download_command if isinstance(place, HubReference) else "download the file, then name it by its path",
        )
    return read_bytes(checkpoint.tensors[key])


def missing_half(checkpoint: Checkpoint, key: str, absent: str, what: str) -> IncompatibleError:
    """The error for a stored tensor whose other half is not in the file."""
    return IncompatibleError(
        "quantised.missing-half",
        f"{checkpoint.reference} has `{key}`, but not {what} `{absent}`",
        facts={"file": checkpoint.reference, "key": key, "missing": absent},
        fix=FIX,
    )


def bad_side(checkpoint: Checkpoint, key: str, expected: str, found: object) -> IncompatibleError:
    """The error for a scale or table that does not fit its weight."""
    return IncompatibleError(
        "quantised.bad-scale",
        f"`{key}` of {checkpoint.reference} does not fit the weight that it belongs to",
        facts={"file": checkpoint.reference, "key": key, "expected": expected, "found": found},
        fix=FIX,
    )


def not_read(checkpoint: Checkpoint, scheme: str, key: str, count: int) -> IncompatibleError:
    """The error for a scheme that is not read."""
    return IncompatibleError(
        "model.quantised",
        f"{checkpoint.reference} is stored as {scheme}, which this version does not read",
        facts={"file": checkpoint.reference, "key": key, "found": f"{count} such keys"},
        fix="use the bf16 checkpoint that it was made from, or an fp8, GGUF, NF4 or int8 file (these are read)",
    )
