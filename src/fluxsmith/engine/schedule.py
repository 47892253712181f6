"""The order of work: tiles of jobs for any number of threads, statistics before results, no waiting between jobs.

A job goes through phases: for every measured step, in order, a sample (where the statistic wants one) and as many
passes as it needs, then a pass for the largest value where a scale of the whole tensor is wanted, then the pass that
writes. Whoever finishes the last tile of a phase opens the next.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fluxsmith.engine.memory import tile_elements
from fluxsmith.engine.plan import Apply, Job
from fluxsmith.engine.programs import program_has
from fluxsmith.methods import find_method
from fluxsmith.methods.statistics import Measurement, Statistic

__all__ = ["JobState", "Schedule", "Task"]


@dataclass
class JobState:
    """A job on its way: values measured so far by step, the statistics still to measure, and the one being measured.

    `largest` are the largest magnitudes of the output tensors that it fills, where their scales are to be found (`unscaled`).
    """

    index: int
    job: Job
    waiting: deque[tuple[int, str, Statistic]]
    measured: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])
    measurement: Measurement | None = None
    sampled: bool = False
    remaining: int = 0
    unscaled: bool = False
    largest: dict[int, float] = field(default_factory=dict[int, float])
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def begin(cls, index: int, job: Job) -> "JobState":
        """A job with its statistics, inner steps first."""
        waiting = deque(
            (i, name, statistic)
            for i, step in enumerate(job.program)
            if isinstance(step, Apply)
            for name, statistic in find_method(step.method).statistics.items()
        )
        return cls(index, job, waiting, unscaled=job.scaling is not None and job.scaling.size is None)

    def note_largest(self, tensor: int, magnitude: float) -> None:
        """Take a magnitude into the largest one of an output tensor."""
        with self.lock:
            self.largest[tensor] = max(magnitude, self.largest.get(tensor, 0.0))

    def open_statistic(self) -> Measurement | None:
        """The measurement that is under way, begun where it is not; None where all is measured that has to be."""
        while self.measurement is None and self.waiting:
            index, name, statistic = self.waiting[0]
            step = self.job.program[index]
            assert isinstance(step, Apply)
            options = {**step.options, **self.measured.get(index, {})}
            if statistic.needed(options):
                self.measurement = statistic.begin(self.job.count, options)
            else:
                self.waiting.popleft()
                self.measured.setdefault(index, {})[name] = None
        return self.measurement

    def close_statistic(self) -> None:
        """Keep the value of the measurement under way."""
        assert self.measurement is not None
        index, name, _ = self.waiting.popleft()
        self.measured.setdefault(index, {})[name] = self.measurement.value()
        self.measurement, self.sampled = None, False

    def tiles(self) -> list[tuple[int, int]]:
        """The tiles of the job's elements; one for a job that needs whole tensors."""
        size = self.job.count if program_has(self.job.program, "whole") else tile_elements(self.job)
        return [(start, min(start + size, self.job.count)) for start in range(0, self.job.count, max(size, 1))]


@dataclass(frozen=True)
class Task:
    """One tile of one phase. `kind` is sample, measure, scale or write."""

    state: JobState
    kind: str
    number: int
    start: int
    stop: int


class Schedule:
    """Hands out tasks. `stop()` lets running tasks end and hands out no more.

    `at_once` makes the last phase of a job one task, for results that are not written tile by tile.
    """

    def __init__(self, jobs: Mapping[int, Job], on_done: Callable[[int], None], *, at_once: bool = False) -> None:
        self._jobs: Iterator[tuple[int, Job]] = iter(jobs.items())
        self._at_once = at_once
        self._on_done = on_done
        self._ready: deque[Task] = deque()
        self._running = 0
        self._stopped = False
        self._changed = threading.Condition()

    def next(self) -> Task | None:
        """The next task; waits where others must finish first. None where there is no more work."""
        with self._changed:
            while not self._stopped:
                if not self._ready:
                    self._open_next()
                if self._ready:
                    self._running += 1
                    return self._ready.popleft()
                if self._running == 0:
                    return None
                self._changed.wait()
            return None

    def upcoming(self, count: int) -> list[Task]:
        """The next few tasks, to read ahead for; a look without a promise."""
        with self._changed:
            return [self._ready[i] for i in range(min(count, len(self._ready)))]

    def done(self, task: Task) -> None:
        """Report a finished task."""
        state = task.state
        with self._changed:
            state.remaining -= 1
            last = state.remaining == 0
        opened = self._advance(task) if last else []
        with self._changed:
            self._running -= 1
            self._ready.extendleft(reversed(opened))
            self._changed.notify_all()

    def stop(self) -> None:
        """Hand out no more tasks."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _open_next(self) -> None:
        """Open jobs until there is something to do; a tensor without elements is done when it is opened."""
        for index, job in self._jobs:
            if job.count:
                self._ready.extend(self._phase(JobState.begin(index, job)))
                return
            self._on_done(index)

    def _advance(self, task: Task) -> Sequence[Task]:
        """Close the phase that has just ended and open the next one."""
        state = task.state
        if task.kind == "write":
            self._on_done(state.index)
            return []
        if task.kind == "scale":
            state.unscaled = False
            return self._phase(state)
        assert state.measurement is not None
        if task.kind == "sample":
            state.sampled = True
        elif not state.measurement.finish_pass():
            state.close_statistic()
        return self._phase(state)

    def _phase(self, state: JobState) -> list[Task]:
        tiles, measurement = state.tiles(), state.open_statistic()
        if measurement is None:
            kind = "scale" if state.unscaled else "write"
        elif measurement.sample_size and not state.sampled and len(tiles) > 1:
            tiles, kind = tiles[:1], "sample"
        else:
            kind = "measure"
        if kind == "write" and self._at_once:
            tiles = [(0, state.job.count)]
        state.remaining = len(tiles)
        return [Task(state, kind, i, start, stop) for i, (start, stop) in enumerate(tiles)]
