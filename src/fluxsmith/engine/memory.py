"""How large tiles are and what they take: memory is decided by tiles and threads, never by the size of the inputs."""

import os
from math import lcm, prod

from fluxsmith.engine.plan import Adapt, Apply, Job
from fluxsmith.engine.programs import program_has
from fluxsmith.errors import ResourceError
from fluxsmith.io.dtypes import stored_type
from fluxsmith.methods import Method, find_method

__all__ = [
    "BASE_BYTES", "TILE", "peak_bytes", "program_tile_bytes", "row_elements", "threads_for", "tile_elements", "whole_bytes",
    "whole_slots",
]  # fmt: skip

#: Elements of a tile of a program with up to two inputs: large enough that Python's part is small, small enough that
#: its float32 values stay in cache.
TILE = 1 << 20
SMALLEST = 1 << 16
#: The interpreter with torch loaded, measured (docs/benchmarks.md).
BASE_BYTES = 270_000_000
_ADAPTED = 6  # float32 matrices that an adapter's algorithm holds beside its result where it reads a whole weight
_TEMPORARIES = 4  # float32 tiles that a method and the engine hold beside the inputs


def tile_elements(job: Job) -> int:
    """Elements per tile: fewer for more inputs, so that the memory of a tile stays the same; whole rows where wanted.

    A function of the program alone, since sums over tiles must not depend on the machine.
    """
    size = TILE
    while size > SMALLEST and size * len(job.loads) > 2 * TILE:
        size //= 2
    unit = lcm(row_elements(job), job.unit)
    return max(size // unit, 1) * unit


def row_elements(job: Job) -> int:
    """Elements that must stay together in a tile: a row of the tensor where a step needs whole rows, else one.

    A vector is one row.
    """
    if not program_has(job.program, "rows") or not job.shape:
        return 1
    return job.count if len(job.shape) == 1 else prod(job.shape[1:])


def program_tile_bytes(job: Job) -> int:
    """Bytes that one tile of a job takes: inputs as stored and as float32, temporaries, output."""
    return 0 if program_has(job.program, "whole") else _bytes(job, min(tile_elements(job), job.count))


def whole_bytes(job: Job) -> int:
    """Bytes of a job whose method needs whole tensors, else 0: inputs as stored and as float32, the working memory of
    its methods, the output."""
    steps = [(step, find_method(step.method)) for step in job.program if isinstance(step, Apply)]
    if not program_has(job.program, "whole"):
        return 0
    rows, columns = (job.shape[0], job.count // job.shape[0]) if len(job.shape) > 1 else (1, job.count)
    inputs = sum(load.view.nbytes + (0 if load.view.stores("F32") else 4 * load.view.count) for load in job.loads)
    peak = between = 0.0
    for step, method in steps:
        peak = max(peak, between + 4 * _workspace(method, rows, columns, len(step.uses)))
        between += 4 * job.count  # its result stays until the program ends
    for step in job.program:
        if isinstance(step, Adapt):
            peak = max(peak, between + 4 * _ADAPTED * job.count)
            between += 4 * job.count
    return int(inputs + max(peak, between + stored_type(job.dtype or "F32").nbytes(job.count)))


def _workspace(method: Method, rows: int, columns: int, inputs: int) -> float:
    if method.workspace is not None:
        return method.workspace(rows, columns, inputs)
    return rows * columns * (inputs + 1 if method.whole else _TEMPORARIES)


def whole_slots(whole: int, threads: int, limit: int | None) -> int:
    """How many whole tensors may be worked on at once: as many as fit below the limit, without one in a quarter of
    the machine's memory, and always one."""
    if not whole:
        return threads
    room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 if limit is None else limit - BASE_BYTES
    return max(1, min(threads, room // whole))


def _bytes(job: Job, elements: int) -> int:
    steps = sum(isinstance(step, Apply) for step in job.program) + 2 * sum(isinstance(step, Adapt) for step in job.program)
    coded = sum(load.view.coded for load in job.loads)
    return elements * (len(job.loads) * (4 + 4) + 8 * coded + 4 * (_TEMPORARIES * (1 + job.quantised) + steps))


def peak_bytes(tile_bytes: int, whole: int, threads: int, limit: int | None = None) -> int:
    """Expected peak of resident memory."""
    return BASE_BYTES + threads * tile_bytes + (whole_slots(whole, threads, limit) * whole if whole else 0)


def threads_for(tile_bytes: int, whole: int, wanted: int, limit: int | None) -> int:
    """As many of the wanted threads as fit below a limit in bytes; raises ResourceError where not even one does."""
    if limit is None:
        return wanted
    for threads in range(wanted, 0, -1):
        if peak_bytes(tile_bytes, whole, threads, limit) <= limit:
            return threads
    need = peak_bytes(tile_bytes, whole, 1, limit)
    raise ResourceError(
        "plan.not-enough-memory",
        f"the run peaks at {need / 1e6:,.0f} MB, {limit / 1e6:,.0f} MB are allowed",
        facts={"made of": f"program {BASE_BYTES / 1e6:,.0f} | tiles {tile_bytes / 1e6:,.0f} | whole tensors {whole / 1e6:,.0f}"},
        fix=f"--memory {-(-need // 10**6)}MB",
    )
