"""Adapters written anew: resized, or several as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxsmith.adapters.converting.conversion import Conversion
from fluxsmith.adapters.dialects import Dialect
from fluxsmith.adapters.extracting.findings import Finding, blocks_of
from fluxsmith.adapters.extracting.rank import RankRule
from fluxsmith.adapters.module import Adapter
from fluxsmith.adapters.rewriting.combining import Combination, untrained
from fluxsmith.adapters.rewriting.resizing import resized
from fluxsmith.adapters.tensors import ModuleTensors
from fluxsmith.adapters.writing.provenance import adapter_metadata
from fluxsmith.adapters.writing.writer import AdapterWriter, Written
from fluxsmith.errors import IncompatibleError
from fluxsmith.layouts import Bound

__all__ = ["Rewritten", "merge", "resize"]


@dataclass(frozen=True)
class Rewritten:
    """An adapter that was written, what became of each of its deltas, and what a user should know."""

    written: Written
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = field(default_factory=tuple[str, ...])


def resize(
    adapter: Adapter, target: Path, dialect: Dialect, rule: RankRule, *,
    base: Bound | None = None, dtype: str | None = None, force: bool = False, options: Mapping[str, Any] | None = None,
) -> Rewritten:  # fmt: skip
    """Write an adapter as LoRAs of the ranks that a rule chooses; see `resized`. Raises FluxsmithError; the target is then as it was."""
    conversion = Conversion(adapter, dialect, base)

    def made() -> Iterator[tuple[ModuleTensors, Finding]]:
        for name, tensor in conversion.changed.items():
            for module in conversion.exact(name):
                found = resized(module, rule, base=base, block=tensor.block)
                if found is not None:
                    yield found

    return _write(made(), [adapter], target, dialect, dtype, force, "adapter resize", options or {}, conversion.notes)


def merge(
    adapters: Sequence[Adapter], weights: Sequence[float], target: Path, dialect: Dialect, *, rule: RankRule | None = None,
    base: Bound | None = None, dtype: str | None = None, force: bool = False, options: Mapping[str, Any] | None = None,
) -> Rewritten:  # fmt: skip
    """Write the sum of adapters, each times its weight; see Combination. Raises FluxsmithError; the target is then as it was."""
    combination = Combination(adapters, weights, dialect, base, rule)
    made = {"weights": list(weights), **(options or {})}
    return _write(combination, adapters, target, dialect, dtype, force, "adapter merge", made, combination.notes)


def _write(
    made: Iterable[tuple[ModuleTensors, Finding]], adapters: Sequence[Adapter], target: Path, dialect: Dialect, dtype: str | None,
    force: bool, command: str, options: Mapping[str, Any], notes: Sequence[str],
) -> Rewritten:  # fmt: skip
    findings: list[Finding] = []
    family = adapters[0].family
    for adapter in adapters:
        _check_apart(adapter, target)
    with AdapterWriter(target, dialect, family, dtype=dtype, force=force) as writer:
        for module, finding in made:
            writer.add(module)
            findings.append(finding)
        if not findings and len(adapters) == 1:
            raise untrained(adapters[0].checkpoint.reference)
        if not findings:
            raise IncompatibleError(
                "adapter.changes-nothing", "the result changes nothing: all deltas add up to zero",
                facts={"adapters": ", ".join(adapter.checkpoint.reference for adapter in adapters)}, fix="other weights",
            )  # fmt: skip
        recorded = {**options, "dialect": dialect.name, "blocks": blocks_of(findings)}
        inputs = [adapter.checkpoint for adapter in adapters]
        metadata = adapter_metadata(family, dialect, title=target.stem, command=command, options=recorded, inputs=inputs)
        ranks = {finding.rank for finding in findings if finding.rank}
        if dialect.vocabulary == "lycoris" and ranks:
            rank = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"
            metadata |= {"ss_network_dim": rank, "ss_network_alpha": rank}
        written = writer.commit(metadata)
    return Rewritten(written, tuple(findings), (*dict.fromkeys(notes), *written.notes))


def _check_apart(adapter: Adapter, target: Path) -> None:
    """Raise IncompatibleError where the output is an input."""
    for file in adapter.checkpoint.files:
        if file.remote is None and target.exists() and target.resolve() in (Path(file.path).resolve(), Path(file.path).resolve().parent):
            raise IncompatibleError(
                "output.is-input", f"the output {target} is an input", facts={"input": file.path}, fix="write to another path with -o"
            )
