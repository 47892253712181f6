"""Watching a run: a bar on a terminal, a line every half minute elsewhere, events with `--json`; and Ctrl-C."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

from fluxsmith.cli.console import Console, bytes_text, duration_text

if TYPE_CHECKING:
    from fluxsmith.engine.execution import Execution
    from fluxsmith.engine.plan import Job, Plan

__all__ = ["RunDisplay"]

EVERY = 30.0


class RunDisplay:
    """An observer of a run. Use as a context manager around the call that runs.

    The first Ctrl-C lets running tiles end and keeps the journal, the second stops at once.
    """

    def __init__(self, console: Console, verb: str = "merge") -> None:
        self._console, self._verb = console, verb
        self._terminal = sys.stderr.isatty() and not console.quiet and not console.as_json
        self._lock = threading.Lock()
        self._total = self._done = self._before = 0
        self._begin = self._last = time.monotonic()
        self._block = ""
        self._execution: Execution | None = None
        self._live: Any = None
        self._handler: Any = None

    def __enter__(self) -> RunDisplay:
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)

    def started(self, plan: Plan, execution: Execution, done_bytes: int) -> None:
        """The run begins."""
        self._execution = execution
        self._total = sum(file.data_bytes for file in plan.files)
        self._done = self._before = done_bytes
        self._begin = self._last = time.monotonic()
        if self._terminal:
            from rich.live import Live

            self._live = Live("", console=self._console.rich, refresh_per_second=8, transient=True)
            self._live.start()

    def advanced(self, count: int, job: Job) -> None:
        """`count` more bytes are written."""
        with self._lock:
            self._done += count
            self._block = job.block or job.tensor
            now = time.monotonic()
            if now - self._last < (0.12 if self._terminal else 1.0 if self._console.as_json else EVERY):
                return
            self._last = now
        self._show()

    def _show(self) -> None:
        if self._live is not None:
            self._live.update(self._line(bar=True))
        elif self._console.as_json:
            print(
                json.dumps({"t": round(time.time(), 3), "stage": self._verb, "done": self._done, "total": self._total}),
                file=sys.stderr,
                flush=True,
            )
        else:
            self._console.talk(self._line(bar=False))

    def _line(self, *, bar: bool) -> str:
        share = self._done / max(self._total, 1)
        elapsed = max(time.monotonic() - self._begin, 1e-6)
        rate = (self._done - self._before) / elapsed
        left = (self._total - self._done) / rate if rate else 0.0
        filled = "█" * round(share * 20)
        drawing = f"{filled:░<20} " if bar else ""
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return (
            f"{self._verb}  {drawing}{share:4.0%}  {bytes_text(self._done)} of {bytes_text(self._total)}  {self._block}  "
            f"{bytes_text(int(rate))}/s  RAM {bytes_text(memory)}  left {duration_text(left)}"
        )

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._execution is None or self._execution.stopped:
            os._exit(130)
        self._execution.stop()
        print("\nstopping after the running tiles; Ctrl-C again stops now", file=sys.stderr, flush=True)
