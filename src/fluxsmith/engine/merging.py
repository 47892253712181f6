"""A merge from wish to file: plan, check the target, run, and put the result in place, all or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from fluxsmith.engine.adapters import check_adapters
from fluxsmith.engine.execution import Execution, Outcome, Settings
from fluxsmith.engine.input_hashes import InputHashes
from fluxsmith.engine.journal import Journal
from fluxsmith.engine.lineage import fill_hashes
from fluxsmith.engine.outputs import COMPANIONS
from fluxsmith.engine.plan import Input, Job, Plan
from fluxsmith.engine.planning import make_plan
from fluxsmith.errors import IncompatibleError, Interrupted, ResourceError, UsageError
from fluxsmith.io.checkpoint import PARTS, Checkpoint
from fluxsmith.io.hashing import NO_SHA256, SHA256_KEY
from fluxsmith.io.opening import open_checkpoint
from fluxsmith.io.references import open_reference
from fluxsmith.io.writer import FileSink, disk_error, held_bytes
from fluxsmith.recipes.recipe import Recipe

__all__ = ["Merged", "Observer", "Silent", "check_target", "check_unchanged", "merge", "opener"]

_REPLACEABLE = (".safetensors", ".json", ".md", ".html", ".model", ".jinja", ".tiktoken")


class Observer(Protocol):
    """Who watches a run: progress bars, the signal handler, tests."""

    def started(self, plan: Plan, execution: Execution, done_bytes: int) -> None:
        """The run begins; `done_bytes` were written by an earlier one."""
        ...

    def advanced(self, count: int, job: Job) -> None:
        """`count` more bytes are written."""
        ...


class Silent:
    """Nobody watches."""

    def started(self, plan: Plan, execution: Execution, done_bytes: int) -> None: ...

    def advanced(self, count: int, job: Job) -> None: ...


@dataclass(frozen=True)
class Merged:
    """A finished merge: where it is, what was planned, what was found on the way."""

    path: Path
    plan: Plan
    outcome: Outcome
    sha256: str | None = None
    hashes: Mapping[str, str] = field(default_factory=dict[str, str])


def opener(*, download: bool, allow_pickle: bool = False) -> Callable[[str], Checkpoint]:
    """Opens references, each once; a model named twice is one checkpoint."""
    known: dict[str, Checkpoint] = {}

    def open_once(reference: str) -> Checkpoint:
        if reference not in known:
            known[reference] = open_reference(reference, download=download, allow_pickle=allow_pickle)
        return known[reference]

    return open_once


def merge(
    recipe: Recipe,
    output: Path,
    *,
    settings: Settings | None = None,
    resume: bool = False,
    force: bool = False,
    allow_pickle: bool = False,
    sha256: bool = False,
    observer: Observer | None = None,
    beside: Callable[[Plan], Mapping[str, str]] = lambda plan: {},
) -> Merged:
    """Merge into a file (`*.safetensors`) or a folder.

    `resume` goes on with an interrupted run of the same plan, `force` replaces an existing output, `sha256` writes
    ModelSpec's hash of the tensor bytes into the header (it costs another pass over the output). `beside` gives small text files that are
    put into an output folder, such as the model card.
    Raises FluxsmithError; the target is not touched before everything is written and verified.
    """
    if sha256:
        recipe = replace(recipe, metadata={**recipe.metadata, SHA256_KEY: NO_SHA256})
    plan = make_plan(recipe, opener(download=False, allow_pickle=allow_pickle), output=output)
    check_target(plan, output, force)
    if any(file.remote for i in plan.inputs for file in i.files):
        plan = make_plan(recipe, opener(download=True, allow_pickle=allow_pickle), output=output)
    if plan.folder:
        plan = replace(plan, small_files={**plan.small_files, **beside(plan)})
    return run_plan(plan, output, settings or Settings(), resume, observer or Silent())


def run_plan(plan: Plan, output: Path, settings: Settings, resume: bool, observer: Observer) -> Merged:
    """Run a plan into its target."""
    sink, done = _open_sink(plan, output, resume)
    journal = Journal(sink.journal, plan.digest(), sink)
    execution = Execution(plan, sink, settings, skip=done, on_job=journal.note, on_bytes=observer.advanced)
    hashes = InputHashes([file for i in plan.inputs for file in i.files])
    started = False
    try:
        journal.start(done)
        started = True
        observer.started(plan, execution, sum(_job_bytes(plan.jobs[i]) for i in done))
        outcome = execution.run()
        if execution.stopped:
            raise Interrupted("run.stopped", "stopped; what is done is kept", fix="the same command with --resume goes on")
        journal.close()
        if not done:
            check_adapters(plan, execution.touched)
        found = hashes.wait()
        check_unchanged(plan)
        sink.commit(fill_hashes(plan.metadata, plan.inputs, found), plan.small_files, plan.copies)
    except (Interrupted, KeyboardInterrupt):
        hashes.cancel()
        if started:
            journal.close()
        sink.keep()
        raise
    except BaseException as error:
        hashes.cancel()
        if started:
            journal.abort()
        if done:
            sink.release()  # the earlier run's work is not this one's to throw away
        else:
            sink.abandon()
        raise disk_error(error, output) if isinstance(error, OSError) else error from None
    return Merged(output, plan, outcome, _recorded_sha256(plan, output), found)


def check_target(plan: Plan, output: Path, force: bool) -> None:
    """Refuse a target that is an input, that exists, or whose disk is too small."""
    for i in plan.inputs:
        for file in i.files:
            if file.remote is None and _same(output, Path(file.path), plan.folder):
                raise IncompatibleError(
                    "output.is-input",
                    f"the output {output} is the input `{i.name}`",
                    facts={"input": file.path},
                    fix="write to another path with -o",
                )
        _check_outside(i, output)
    if os.path.lexists(output) and not (output.is_dir() and plan.folder and not any(output.iterdir())):
        if not force:
            raise UsageError("output.exists", f"{output} exists", fix="--force replaces it, or give another path with -o")
        _check_replaceable(output, plan.folder)
    parent = _existing_parent(output)
    free = shutil.disk_usage(parent).free + held_bytes(output)
    if free < plan.needs.disk:
        raise ResourceError(
            "plan.not-enough-disk",
            f"the output takes {plan.needs.disk / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free",
            facts={"folder": parent},
            fix="free some space, or write to another disk with -o",
        )


def _check_replaceable(output: Path, folder: bool) -> None:
    """--force replaces checkpoints, never a folder with other things in it."""
    if output.is_dir() != folder:
        raise UsageError("output.exists", f"{output} is {'a folder' if output.is_dir() else 'a file'}", fix="give another path with -o")
    pipeline = folder and (output / "model_index.json").exists()
    known = (*PARTS, *COMPANIONS) if pipeline else ("vocab.txt", "merges.txt", "1_Pooling")
    foreign = [p.name for p in output.iterdir() if p.name not in known and (p.is_dir() or p.suffix not in _REPLACEABLE)] if folder else []
    if foreign:
        raise UsageError(
            "output.not-replaceable",
            f"{output} holds other things than a checkpoint, so it is not replaced",
            facts={"found": ", ".join(sorted(foreign)[:10])},
            fix="give another path with -o",
        )


def _check_outside(i: Input, output: Path) -> None:
    """Refuse a target inside of a folder that is an input: the next reader would take it for a part of that one."""
    if not i.files or i.files[0].remote is not None or not Path(i.reference).expanduser().is_dir():
        return
    folder = Path(os.path.realpath(Path(i.files[0].path).parent))
    if folder in Path(os.path.realpath(output)).parents:
        raise IncompatibleError(
            "output.inside-input",
            f"the output {output} lies in the folder of the input `{i.name}`",
            facts={"input": folder},
            fix="write to another path with -o",
        )


def _same(output: Path, path: Path, folder: bool) -> bool:
    if folder:
        root = path.parent.parent if path.parent.name in PARTS else path.parent
        return output.exists() and os.path.realpath(output) in (os.path.realpath(path.parent), os.path.realpath(root))
    return output.exists() and os.path.samefile(output, path)


def _existing_parent(path: Path) -> Path:
    parent = path.resolve().parent
    while not parent.exists():
        parent = parent.parent
    return parent


def _open_sink(plan: Plan, output: Path, resume: bool) -> tuple[FileSink, set[int]]:
    """The place to write to, and the jobs that are done there already."""
    sink = FileSink(output, plan.files, folder=plan.folder)
    done = _finished_before(sink, plan) if resume else set[int]()
    return sink, done if sink.open(keep=bool(done)) else set[int]()


def _finished_before(sink: FileSink, plan: Plan) -> set[int]:
    """The jobs that an interrupted run has done; raises IncompatibleError where it was one of another plan."""
    done = Journal.finished(sink.journal, plan.digest())
    if done is None and sink.journal.exists():
        sink.release()
        raise IncompatibleError(
            "output.other-run",
            f"what is kept beside {sink.target} belongs to another recipe or to inputs that have changed",
            facts={"kept": sink.root},
            fix="leave --resume out to begin anew",
        )
    return done or set()


def _job_bytes(job: Job) -> int:
    from fluxsmith.io.dtypes import stored_type

    return stored_type(job.dtype).nbytes(job.count)


def check_unchanged(plan: Plan) -> None:
    """Inputs must be the files that were planned for, to the end."""
    from fluxsmith.io.checkpoint import local_file

    for file in (file for i in plan.inputs for file in i.files):
        if not os.path.exists(file.path) or local_file(Path(file.path)).stamp != file.stamp:
            raise IncompatibleError("input.changed", f"{file.path} changed while it was read", fix="run the merge again")


def _recorded_sha256(plan: Plan, output: Path) -> str | None:
    """ModelSpec's hash_sha256 as it was written, file by file; None where it was not asked for."""
    if SHA256_KEY not in plan.metadata:
        return None
    paths = [output / file.name for file in plan.files] if plan.folder else [output]
    return ", ".join(open_checkpoint(path).metadata[SHA256_KEY] for path in paths)
