"""Numbers per tile of many tensors: the engine's threads and tiles, for work that only reads.

A job's program is one load or several of equal length; its tiles are given to a function as numpy arrays. Rows come
back in the order of the tiles, so what is made of them does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

from fluxsmith.engine.memory import program_tile_bytes
from fluxsmith.engine.plan import Job, Load
from fluxsmith.engine.streaming import Settings, Streaming
from fluxsmith.io.dtypes import DTYPES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fluxsmith.engine.schedule import Task
    from fluxsmith.engine.tiles import Workspace
    from fluxsmith.io.views import View

    Tile = NDArray[np.floating]

__all__ = ["CHUNK", "Look", "Progress", "Row", "is_readable", "product", "survey"]

#: Elements that a look should take at a time, so that its float64 copies stay in cache.
CHUNK = 1 << 15

Row = tuple[float, ...]
#: From equally long tiles of the loads of a job to some numbers.
Look = Callable[..., Row]
#: Called now and then with bytes read, bytes in all, and where.
Progress = Callable[[int, int, str], None]


def product(x: Tile, y: Tile) -> float:
    """The sum of x * y. BLAS's dot would start threads of its own inside each of ours, and take ten times as long."""
    import numpy as np

    return float(np.einsum("i,i->", x, y))


def is_readable(view: View) -> bool:
    """Whether a view's numbers can be had: not those of complex and of sub-byte types."""
    return all(DTYPES[d].torch not in (None, "complex64") for d in view.dtypes)


def survey(
    loads: Mapping[str, Sequence[View]], look: Look, *, settings: Settings | None = None, progress: Progress | None = None
) -> dict[str, list[Row]]:
    """What `look` says of every tile of the named loads, by name, in the order of the tiles.

    Raises FileError where a file becomes shorter while it is read, ResourceError where the limit of memory is too low.
    """
    jobs = {name: _job(name, views) for name, views in loads.items() if views[0].count}
    work = _Survey(list(jobs.values()), look, settings or Settings(), progress)
    return {**{name: [] for name in loads}, **dict(zip(jobs, work.run(), strict=True))}


def _job(name: str, views: Sequence[View]) -> Job:
    shape = (prod(views[0].shape),)
    return Job(name, 0, shape, tuple(Load(name, view) for view in views), "", (), "read")


class _Survey(Streaming):
    def __init__(self, jobs: Sequence[Job], look: Look, settings: Settings, progress: Progress | None) -> None:
        wide = any(DTYPES[d].bits > 16 and d != "F32" for job in jobs for load in job.loads for d in load.view.dtypes)
        super().__init__(dict(enumerate(jobs)), settings, compute="F64" if wide else "F32")
        self._jobs, self._look, self._progress = jobs, look, progress
        self._rows: dict[int, dict[int, Row]] = {i: {} for i in range(len(jobs))}
        self._total = sum(load.view.nbytes for job in jobs for load in job.loads)
        self._read = 0

    def run(self) -> list[list[Row]]:
        """Rows per job."""
        self._stream(max((program_tile_bytes(job) for job in self._jobs), default=0), 0)
        return [[rows[number] for number in sorted(rows)] for rows in self._rows.values()]

    def _do(self, space: Workspace, task: Task) -> None:
        job, index = task.state.job, task.state.index
        tiles = space.evaluate(job, task.start, task.stop, {}, range(len(job.program)))
        row = self._look(*(tile.numpy() for tile in tiles))
        nbytes = sum(e.nbytes for load in job.loads for e in load.view.cut(task.start, task.stop))
        with self._lock:
            self._rows[index][task.number] = row
            self._read += nbytes
            read = self._read
        if self._progress is not None:
            self._progress(read, self._total, job.tensor)
