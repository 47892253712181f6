"""Telling glibc to keep freed tiles: by default it gives megabytes back to the system and takes them again, page by page.

Measured on tiles of 4 MB: the kernel's share of a merge's CPU time halves (docs/LOG.md). Other C libraries have no such
setting, and nothing is done there.
"""

import ctypes
import sys
from functools import cache

__all__ = ["keep_freed_tiles"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_MAX = 32 << 20  # glibc accepts no more


@cache
def keep_freed_tiles() -> bool:
    """Set the thresholds of this process once; True where that was possible."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, 256 << 20) and mallopt(_M_MMAP_THRESHOLD, _MMAP_MAX))
