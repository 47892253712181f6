"""From an adapter to a file in another dialect: convert every module, write it, count what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxsmith.adapters.converting.conversion import Conversion
from fluxsmith.adapters.converting.materialising import Shape
from fluxsmith.adapters.dialects import Dialect
from fluxsmith.adapters.module import Adapter
from fluxsmith.adapters.writing.provenance import adapter_metadata, dropped_metadata
from fluxsmith.adapters.writing.writer import AdapterWriter, Written
from fluxsmith.errors import IncompatibleError
from fluxsmith.layouts import Bound

if TYPE_CHECKING:
    from fluxsmith.adapters.extracting.rank import RankRule

__all__ = ["Outcome", "convert"]


@dataclass(frozen=True)
class Outcome:
    """What a conversion wrote, by what way modules went (`same`, `cut`, `joined`, `dense`, `low rank`) and how much of a
    delta each approximated module lost: canonical tensor -> relative residual."""

    written: Written
    ways: Mapping[str, int]
    residuals: Mapping[str, float] = field(default_factory=dict[str, float])
    notes: tuple[str, ...] = ()


def convert(
    adapter: Adapter, target: Path, dialect: Dialect, *, base: Bound | None = None, shape: Shape | None = None,
    rule: RankRule | None = None, dtype: str | None = None, force: bool = False, options: Mapping[str, Any] | None = None,
) -> Outcome:  # fmt: skip
    """Write an adapter in another dialect, with the same delta; see Conversion for `base`, `shape` and `rule`.

    `dtype` rounds the factors to a type; without it they stay as they are, or become fp32 where a scale must go into
    them. `options` are recorded in the file. Raises FluxsmithError; the target is then as it was.
    """
    _check_apart(adapter, target)
    conversion = Conversion(adapter, dialect, base, shape, rule)
    ways: Counter[str] = Counter()
    residuals: dict[str, float] = {}
    with AdapterWriter(target, dialect, adapter.family, dtype=dtype, force=force) as writer:
        for converted in conversion:
            ways[converted.how] += 1
            if converted.how == "low rank":
                residuals[converted.module.target.tensor] = converted.residual
            writer.add(converted.module)
        metadata = adapter_metadata(
            adapter.family, dialect, title=target.stem, command="adapter convert",
            options={"to": dialect.name, **(options or {})}, inputs=[adapter.checkpoint],
        )  # fmt: skip
        written = writer.commit(metadata)
    dropped = dropped_metadata(adapter)
    notes = [*conversion.notes, *written.notes]
    if dropped:
        notes.append("fields of the header that described the source's container are left out: " + ", ".join(dropped))
    return Outcome(written, dict(ways), residuals, tuple(notes))


def _check_apart(adapter: Adapter, target: Path) -> None:
    """The source is not written over: what it was could not be had again."""
    for file in adapter.checkpoint.files:
        path = Path(file.path)
        if file.remote is None and target.exists() and (target.samefile(path) or target.samefile(path.parent)):
            raise IncompatibleError(
                "output.is-input", f"the output {target} is the adapter itself", facts={"input": path}, fix="write to another path with -o"
            )
