"""What an interrupted run has done, so that it can go on: finished jobs, noted only after their bytes are on the disk."""

import json
import os
import threading
from pathlib import Path

from fluxsmith.io.writer import Sink

__all__ = ["Journal"]


class Journal:
    """A file whose first line names the plan; every further line lists jobs whose output is on the disk.

    A thread syncs the output every few seconds and then notes what was finished before the sync began; so the disk
    works while tiles are computed, and the final sync is short.
    """

    INTERVAL = 1.0

    def __init__(self, path: Path, digest: str, sink: Sink) -> None:
        self._path, self._digest, self._sink = path, digest, sink
        self._fresh: list[int] = []
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.error: Exception | None = None

    @staticmethod
    def finished(path: Path, digest: str) -> set[int] | None:
        """The jobs that a journal of the same plan lists; None where there is no such journal."""
        try:
            first, *lines = path.read_text().splitlines()
            if json.loads(first) != {"plan": digest}:
                return None
        except (OSError, ValueError):
            return None
        done: set[int] = set()
        for line in lines:
            try:
                done.update(json.loads(line))
            except ValueError:
                break  # the line that was being written when the run died
        return done

    def start(self, done: set[int]) -> None:
        """Begin the journal anew, with what is already done."""
        fresh = self._path.with_name("journal.new")
        fresh.write_text(json.dumps({"plan": self._digest}) + "\n" + json.dumps(sorted(done)) + "\n")
        os.replace(fresh, self._path)  # at no moment is there half a journal
        self._thread.start()

    def note(self, job: int) -> None:
        """A job's bytes have been handed to the system."""
        with self._lock:
            self._fresh.append(job)

    def close(self) -> None:
        """Sync and note everything; raises what an earlier sync met, as the system tells of it only once."""
        self._end.set()
        self._thread.join()
        if self.error is not None:
            raise self.error
        self._flush()

    def abort(self) -> None:
        """End without a last sync."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self.INTERVAL):
            try:
                self._flush()
            except Exception as error:
                self.error = error
                return

    def _flush(self) -> None:
        with self._lock:
            jobs, self._fresh = self._fresh, []
        self._sink.sync()
        if jobs:
            with self._path.open("a") as file:
                file.write(json.dumps(jobs) + "\n")
                file.flush()
                os.fsync(file.fileno())
