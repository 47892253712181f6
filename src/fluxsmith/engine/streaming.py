"""Threads that take tiles from a schedule, each with its own memory; what is done with a tile is a subclass's part."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fluxsmith.engine.allocation import keep_freed_tiles
from fluxsmith.engine.devices import Device, open_device
from fluxsmith.engine.memory import threads_for, whole_slots
from fluxsmith.engine.plan import Job
from fluxsmith.engine.programs import program_has
from fluxsmith.engine.schedule import Schedule, Task
from fluxsmith.engine.tiles import Files, Workspace

__all__ = ["Settings", "Streaming"]

_AHEAD = 8  # tiles to read ahead


@dataclass(frozen=True)
class Settings:
    """How to run, none of which changes the bytes of the output. `memory` is a limit in bytes."""

    threads: int | None = None
    device: str = "cpu"
    memory: int | None = None
    allow_nonfinite: bool = False


class Streaming(ABC):
    """Jobs on their way through tiles. `compute` is the type in which tiles are loaded (a safetensors name)."""

    #: Whether the last task of a job is for all of its elements, as their result is not written tile by tile.
    at_once = False

    def __init__(
        self,
        jobs: Mapping[int, Job],
        settings: Settings,
        *,
        compute: str = "F32",
        seed: int = 0,
        on_job: Callable[[int], None] = lambda job: None,
    ) -> None:
        self._settings, self._loaded_as, self._seed = settings, compute, seed
        self._schedule = Schedule(jobs, on_job, at_once=self.at_once)
        self._files = Files()
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._slots = threading.Semaphore()
        self.stopped = False
        #: Adapters whose delta was not zero everywhere.
        self.touched: set[str] = set()

    @abstractmethod
    def _do(self, space: Workspace, task: Task) -> None:
        """Work on one tile; called from several threads."""

    def stop(self) -> None:
        """Finish running tiles and return; safe from a signal handler's thread."""
        self.stopped = True
        self._schedule.stop()

    def _stream(self, tile_bytes: int, whole_bytes: int) -> None:
        """Do all tasks, or those until `stop()`; raises the first error that any thread met."""
        import torch

        wanted = self._settings.threads or min(os.cpu_count() or 1, 16)
        count = threads_for(tile_bytes, whole_bytes, wanted, self._settings.memory)
        self._slots = threading.Semaphore(whole_slots(whole_bytes, count, self._settings.memory))
        kind = open_device(self._settings.device)
        keep_freed_tiles()
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # one tile is one thread's work; threads of threads would fight for the cores
        threads = [threading.Thread(target=self._work, args=(kind,)) for _ in range(count)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)  # wakes up for signals
        finally:
            self._stop_threads(threads)
            torch.set_num_threads(before)
            self._files.close()
        if self._error is not None:
            raise self._error

    def _stop_threads(self, threads: list[threading.Thread]) -> None:
        """Leave no thread behind, also when the main thread is interrupted."""
        self._schedule.stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join()

    def _work(self, kind: str) -> None:
        import torch

        try:
            with torch.inference_mode():
                space = Workspace(self._files, Device(kind), self._loaded_as, self._seed)
                while (task := self._schedule.next()) is not None:
                    self._read_ahead()
                    with space.device.session():
                        self._do_in_turn(space, task)
                    self._schedule.done(task)
                with self._lock:
                    self.touched |= space.touched
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
            self._schedule.stop()

    def _do_in_turn(self, space: Workspace, task: Task) -> None:
        """Work on a task; of those that hold whole tensors only as many at once as memory was planned for."""
        if not program_has(task.state.job.program, "whole"):
            self._do(space, task)
            return
        with self._slots:
            self._do(space, task)
            space.forget()

    def _read_ahead(self) -> None:
        for task in self._schedule.upcoming(_AHEAD)[-1:]:
            for load in task.state.job.loads:
                if load.view.count == task.state.job.count:
                    self._files.expect(load.view, task.start, task.stop)
