"""How large tiles are and what they take: memory is decided by tiles and threads, never by the size of the inputs."""

from fluxsmith.engine.plan import Apply, Job
from fluxsmith.engine.programs import program_is_whole
from fluxsmith.errors import ResourceError

__all__ = ["BASE_BYTES", "TILE", "peak_bytes", "program_tile_bytes", "threads_for", "tile_elements", "whole_bytes"]

#: Elements of a tile of a program with up to two inputs: large enough that Python's part is small, small enough that
#: its float32 values stay in cache.
TILE = 1 << 20
SMALLEST = 1 << 16
#: The interpreter with torch loaded, measured (docs/benchmarks.md).
BASE_BYTES = 270_000_000
_TEMPORARIES = 4  # float32 tiles that a method and the engine hold beside the inputs


def tile_elements(job: Job) -> int:
    """Elements per tile: fewer for more inputs, so that the memory of a tile stays the same.

    A function of the program alone, since sums over tiles must not depend on the machine.
    """
    size = TILE
    while size > SMALLEST and size * len(job.loads) > 2 * TILE:
        size //= 2
    return size


def program_tile_bytes(job: Job) -> int:
    """Bytes that one tile of a job takes: inputs as stored and as float32, temporaries, output."""
    return 0 if program_is_whole(job.program) else _bytes(job, min(tile_elements(job), job.count))


def whole_bytes(job: Job) -> int:
    """Bytes of a job whose method needs whole tensors, else 0."""
    return sum(8 * load.view.count for load in job.loads) * 2 if program_is_whole(job.program) else 0


def _bytes(job: Job, elements: int) -> int:
    steps = sum(isinstance(step, Apply) for step in job.program)
    return elements * (len(job.loads) * (4 + 4) + 4 * (_TEMPORARIES + steps))


def peak_bytes(tile_bytes: int, whole: int, threads: int) -> int:
    """Expected peak of resident memory."""
    return BASE_BYTES + threads * tile_bytes + whole


def threads_for(tile_bytes: int, whole: int, wanted: int, limit: int | None) -> int:
    """As many of the wanted threads as fit below a limit in bytes; raises ResourceError where not even one does."""
    if limit is None:
        return wanted
    for threads in range(wanted, 0, -1):
        if peak_bytes(tile_bytes, whole, threads) <= limit:
            return threads
    need = peak_bytes(tile_bytes, whole, 1)
    raise ResourceError(
        "plan.not-enough-memory",
        f"the run peaks at {need / 1e9:.2f} GB, {limit / 1e9:.2f} GB are allowed",
        facts={"made of": f"program {BASE_BYTES / 1e9:.2f} | tiles {tile_bytes / 1e9:.2f} | whole tensors {whole / 1e9:.2f}"},
        fix=f"--memory {-(-need // 10**6)}MB",
    )
