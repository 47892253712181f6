"""Hashes of whole files (BLAKE3, the value that `b3sum` prints), remembered for files that have not changed.

BLAKE3 takes several GB/s on one core, so hashing runs beside a merge as a reader that warms the page cache for it.
The memory of hashes is a small file in the user's cache folder, keyed by path, size, mtime and inode.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

from fluxsmith.io.checkpoint import WeightFile

__all__ = ["NO_SHA256", "SHA256_KEY", "HashMemory", "content_hash", "sha256_of_tensors"]

#: Where ModelSpec has the sha256 of a file's tensor bytes, and what stands there until they are written.
SHA256_KEY = "modelspec.hash_sha256"
NO_SHA256 = "0x" + "0" * 64

CHUNK = 1 << 22


def content_hash(path: str, stop: Callable[[], bool] = lambda: False) -> str | None:
    """`blake3:<64 hex digits>` of a whole file, or None where `stop()` became true on the way."""
    from blake3 import blake3

    hasher = blake3()
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while length := file.readinto(buffer):
            if stop():
                return None
            hasher.update(view[:length])
    return f"blake3:{hasher.hexdigest()}"


def sha256_of_tensors(path: Path, data_start: int) -> str:
    """`0x<64 hex digits>`: ModelSpec's hash_sha256, over the tensor bytes without the header."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(data_start)
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return f"0x{hasher.hexdigest()}"


class HashMemory:
    """Hashes of files seen before. A file that was touched since is hashed again."""

    def __init__(self, path: Path | None = None) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.path = path or cache / "fluxsmith" / "hashes.json"
        self._lock = threading.Lock()

    def find(self, file: WeightFile) -> str | None:
        """The remembered hash of a file with this path and stamp."""
        return self._read().get(_key(file))

    def keep(self, file: WeightFile, value: str) -> None:
        """Remember a hash; a cache that cannot be written is done without."""
        with self._lock:
            known = self._read()
            known[_key(file)] = value
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                fresh = self.path.with_name(f"{self.path.name}.{os.getpid()}")
                fresh.write_text(json.dumps(known, indent=0))
                os.replace(fresh, self.path)
            except OSError:
                return

    def _read(self) -> dict[str, str]:
        try:
            known = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def _key(file: WeightFile) -> str:
    return f"{os.path.realpath(file.path)}|{file.stamp}"
