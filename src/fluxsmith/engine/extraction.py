"""Extraction: a delta (of two checkpoints, or of any recipe) as an adapter, one matrix at a time.

The delta of every canonical tensor is computed as in a merge and cut into the tensors of the dialect's layout, each
of which becomes a module. Finished modules go to a scratch folder, so that the work can be resumed; in the end they
are written in the dialect, all or nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fluxsmith.adapters.dialects import DIALECTS
from fluxsmith.adapters.extracting.extraction import Options
from fluxsmith.adapters.extracting.factorise import low_rank_elements
from fluxsmith.adapters.extracting.findings import LEFT_OUT, Finding, blocks_of
from fluxsmith.adapters.extracting.rank import RankRule
from fluxsmith.adapters.module import Target
from fluxsmith.adapters.writing.places import targets_of
from fluxsmith.adapters.writing.provenance import adapter_metadata, recorded
from fluxsmith.adapters.writing.writer import AdapterWriter, Written
from fluxsmith.engine.deltas import Deltas
from fluxsmith.engine.execution import Settings
from fluxsmith.engine.input_hashes import InputHashes
from fluxsmith.engine.inputs import bind_input
from fluxsmith.engine.lineage import fill_hashes
from fluxsmith.engine.memory import whole_bytes
from fluxsmith.engine.merging import Observer, Silent, check_target, check_unchanged, opener
from fluxsmith.engine.plan import Plan
from fluxsmith.engine.planning import make_plan
from fluxsmith.engine.scratch import Scratch
from fluxsmith.errors import IncompatibleError, Interrupted
from fluxsmith.io.dtypes import DTYPES
from fluxsmith.layouts import Canonical
from fluxsmith.recipes.recipe import Recipe
from fluxsmith.recipes.selectors import Selector

__all__ = ["Extracted", "Wish", "extract", "recorded_wish"]

_RECORD = "fluxsmith.extraction"  # what was asked for and found, as JSON


@dataclass(frozen=True)
class Wish:
    """What is to be extracted and how it is written: see `Options` for the mathematics.

    `dtype` is the type of the factors (a name such as fp16), `select` are selectors of the tensors that are wanted (none:
    all), `biases` says whether vectors are (None: where the dialect can hold their differences). `command` and `recorded` are
    what the file says of how it was made, beside this.
    """

    options: Options
    dialect: str
    dtype: str = "fp16"
    select: tuple[str, ...] = ()
    biases: bool | None = None
    command: str = "extract"
    recorded: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Extracted:
    """An adapter that was extracted. `equal` counts the tensors in which nothing differs, `left_out` those that were not
    wanted by reason."""

    written: Written
    plan: Plan
    findings: tuple[Finding, ...]
    equal: int
    left_out: Mapping[str, int]
    hashes: Mapping[str, str]


def extract(
    recipe: Recipe,
    output: Path,
    wish: Wish,
    *,
    settings: Settings | None = None,
    resume: bool = False,
    force: bool = False,
    allow_pickle: bool = False,
    observer: Observer | None = None,
    resumable: bool = True,
) -> Extracted:
    """Write the delta that a recipe means as an adapter.

    `resume` goes on with an interrupted run of the same work, `force` replaces an existing output; without `resumable`
    an interrupted run leaves nothing. Raises FluxsmithError; the target is not touched before everything is written.
    """
    _check_words(wish)
    recipe = recipe.with_output(dtype="F32")
    opening = opener(download=False, allow_pickle=allow_pickle)
    plan = make_plan(recipe, opening, space="delta")
    if any(file.remote for i in plan.inputs for file in i.files):
        opening = opener(download=True, allow_pickle=allow_pickle)
        plan = make_plan(recipe, opening, space="delta")
    units, left_out = _units(plan, recipe, opening, wish)
    plan = _sized(plan, units, wish)
    check_target(plan, output, force)
    work = json.dumps([plan.digest(), dataclasses.asdict(wish)], default=str)
    scratch = Scratch(output, hashlib.sha256(work.encode()).hexdigest(), resume=resume)
    hashes = InputHashes([file for i in plan.inputs for file in i.files])
    try:
        _run(plan, units, wish, settings or Settings(), scratch, observer or Silent())
        found = hashes.wait()
        check_unchanged(plan)
        return _write(plan, units, wish, output, force, scratch, left_out, found, recipe.metadata)
    except (Interrupted, KeyboardInterrupt):
        hashes.cancel()
        if not resumable:
            scratch.remove()
            raise Interrupted("run.stopped", "stopped; nothing was written", fix="the same command begins anew") from None
        scratch.close()
        raise
    except BaseException:
        hashes.cancel()
        if resume:
            scratch.close()  # the earlier run's work is not this one's to throw away
        else:
            scratch.remove()
        raise


def _holds(dialect: str, algorithm: str) -> bool:
    writing = DIALECTS[dialect].writing
    return writing is not None and algorithm in writing.algorithms


def _check_words(wish: Wish) -> None:
    """Raise IncompatibleError where the dialect cannot hold what was asked for."""
    full = ("diff", "--full-residual" if wish.options.full_residual else "")
    asked = "diff" if wish.options.algorithm == "full" else wish.options.algorithm
    for algorithm, why in ((asked, f"--algo {wish.options.algorithm}"), ("diff", "--biases" if wish.biases else ""), full):
        if why and not _holds(wish.dialect, algorithm):
            able = [name for name in DIALECTS if _holds(name, algorithm)]
            raise IncompatibleError(
                "adapter.algorithm",
                f"the dialect {wish.dialect} cannot hold what {why} makes ({algorithm})",
                facts={"dialects that can": ", ".join(able)},
                fix=f"--dialect {able[0]}",
            )


def _units(plan: Plan, recipe: Recipe, opening: Any, wish: Wish) -> tuple[dict[str, Canonical], dict[str, int]]:
    """The tensors whose deltas are wanted, in the order of the plan, and how many are left out for which reason."""
    known = {
        name: tensor
        for model in recipe.models()
        if model.holds != "param"
        for name, tensor in bind_input(model, recipe, opening).spec.items()
    }
    selectors, used = [Selector(text) for text in wish.select], set[str]()
    wanted: dict[str, Canonical] = {}
    left_out: dict[str, int] = {}
    for job in plan.jobs:
        tensor = known[job.tensor]
        matching = [s.text for s in selectors if s.matches(tensor) or any(s.matches(tensor, part.name) for part in tensor.segments)]
        used.update(matching)
        reason = ""
        if not DTYPES[job.dtype].is_float or job.reason == "a mark":
            reason = "no float"
        elif selectors and not matching:
            reason = "not selected"
        elif len(tensor.shape) < 2 and wish.biases is False:
            reason = "vectors"
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
        else:
            wanted[job.tensor] = tensor
    idle = [s.text for s in selectors if s.text not in used]
    if idle or not wanted:
        raise IncompatibleError(
            "recipe.selector-without-match",
            f"`{idle[0]}` matches no tensor of this {plan.family} model" if idle else "no tensor is wanted",
            fix="fluxsmith inspect FILE --keys '*' shows the names",
        )
    return wanted, left_out


def _sized(plan: Plan, units: Mapping[str, Canonical], wish: Wish) -> Plan:
    """The plan with the memory and the disk that an extraction takes."""
    rule, width = wish.options.rule, 4
    rank = int(rule.value) if rule.kind == "rank" else 128
    whole = disk = 0
    for job in plan.jobs:
        tensor = units.get(job.tensor)
        if tensor is None:
            continue
        rows, columns = (tensor.shape[0], tensor.count // tensor.shape[0]) if len(tensor.shape) > 1 else (1, tensor.count)
        full = wish.options.algorithm == "full" or rows == 1
        disk += width * (tensor.count if full else min(rank * (rows + columns), tensor.count))
        work = 0.0 if full else low_rank_elements(rows, columns, rank)
        whole = max(whole, int(4 * (tensor.count + work)) + whole_bytes(job))
    folder = getattr(DIALECTS[wish.dialect].writing, "folder", False)
    return replace(plan, folder=folder, needs=replace(plan.needs, disk=3 * disk, whole_bytes=whole))


def _run(plan: Plan, units: Mapping[str, Canonical], wish: Wish, settings: Settings, scratch: Scratch, observer: Observer) -> None:
    """Extract what the scratch does not have yet; raises Interrupted where the run was stopped."""
    done = scratch.pieces()
    dialect = DIALECTS[wish.dialect]

    def targets(tensor: Canonical) -> list[Target]:
        return targets_of(tensor, dialect, plan.family)

    holds = _holds(wish.dialect, "diff")
    options = replace(wish.options, dense=holds, vectors=holds)
    run = Deltas(plan, units, targets, options, settings, skip=done, keep=scratch.put, on_bytes=observer.advanced)
    finished = [units[name].count for number, name in enumerate(units) if number in done]
    observer.started(_shown(plan, units), run, 4 * sum(finished))
    run.run()
    if run.stopped:
        raise Interrupted("run.stopped", "stopped; what is done is kept", fix="the same command with --resume goes on")


def _shown(plan: Plan, units: Mapping[str, Canonical]) -> Plan:
    """The plan for who watches: as many bytes as the wanted deltas have in fp32."""
    from fluxsmith.io.header import TensorEntry
    from fluxsmith.io.shards import OutputFile

    count = 4 * sum(tensor.count for tensor in units.values())
    return replace(plan, files=(OutputFile("deltas", {"deltas": TensorEntry("U8", (count,), 0, count)}, 0),))


def _write(
    plan: Plan, units: Mapping[str, Canonical], wish: Wish, output: Path, force: bool, scratch: Scratch,
    left_out: Mapping[str, int], hashes: Mapping[str, str], given: Mapping[str, str],
) -> Extracted:  # fmt: skip
    """All pieces in the dialect, in the order of the plan; `given` are the metadata of a file that is made again."""
    dialect = DIALECTS[wish.dialect]
    findings: list[Finding] = []
    equal = 0
    with AdapterWriter(output, dialect, plan.family, dtype=wish.dtype, force=force) as writer:
        for number in range(len(units)):
            pieces = scratch.get(number)
            equal += not pieces
            for module, finding in pieces:
                if module is not None:
                    writer.add(module)
                findings.append(finding)
        if all(finding.algorithm == LEFT_OUT for finding in findings):
            raise IncompatibleError(
                "adapter.changes-nothing", "the two are equal: there is nothing to extract",
                facts={i.name: i.reference for i in plan.inputs}, fix="name the tuned checkpoint first, then its base",
            )  # fmt: skip
        own = {**fill_hashes(plan.metadata, plan.inputs, hashes), **extraction_metadata(plan, wish, findings)}
        written = writer.commit(dict(given) or own)
    scratch.remove()
    return Extracted(written, plan, tuple(findings), equal, left_out, hashes)


def extraction_metadata(plan: Plan, wish: Wish, findings: Sequence[Finding]) -> dict[str, str]:
    """What the file says of itself: what loaders look for, how it was made, and what of every block was kept."""
    rule = wish.options.rule
    ranks = [finding.rank for finding in findings if finding.rank]
    rank = str(max(ranks, default=0)) if len(set(ranks)) < 2 else "Dynamic"
    made = {
        "algorithm": wish.options.algorithm, "rule": rule.kind, "value": rule.value, "multiple": rule.multiple,
        "factor": wish.options.factor, "full_residual": wish.options.full_residual, "legacy_clamp": wish.options.legacy_clamp,
        "dialect": wish.dialect, "dtype": wish.dtype, "select": list(wish.select), "biases": wish.biases,
    }  # fmt: skip
    title = plan.title or "fluxsmith extraction"
    options = {"dtype": wish.dtype, "select": wish.select, **wish.recorded}
    data = adapter_metadata(plan.family, DIALECTS[wish.dialect], title=title, command=wish.command, options=options)
    data |= {_RECORD: json.dumps({**made, "blocks": blocks_of(findings)}, separators=(",", ":"))}
    if DIALECTS[wish.dialect].vocabulary == "lycoris":
        module = "networks.lora_flux" if wish.options.algorithm == "lora" and plan.family == "flux1" else "lycoris.kohya"
        data |= {"ss_network_module": module, "ss_network_dim": rank, "ss_network_alpha": rank}
    return data


def recorded_wish(metadata: Mapping[str, str]) -> Wish | None:
    """The wish by which `fluxsmith extract` made a file, from its metadata; None for a file that was made otherwise."""
    if _RECORD not in metadata or recorded(metadata).get("command") != Wish.command:
        return None
    made = json.loads(metadata[_RECORD])
    rule = RankRule(made["rule"], made["value"], made["multiple"])
    options = Options(made["algorithm"], rule, made["factor"], made["full_residual"], made["legacy_clamp"])
    return Wish(options, made["dialect"], made["dtype"], tuple(made["select"]), made["biases"])
