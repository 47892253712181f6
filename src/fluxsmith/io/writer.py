"""Writing an output all or nothing: a temporary file beside the target, preallocated, filled at final offsets by
several threads, synced, verified, renamed. A crash leaves the old file or none.

A sink is where tiles go: `FileSink` writes files, `MemorySink` keeps them, for models that are only run.
"""

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fluxsmith.errors import FileError, ResourceError
from fluxsmith.io.header import encode_header, parse_header
from fluxsmith.io.shards import OutputFile

__all__ = ["FileSink", "MemorySink", "Sink", "partial_path"]


class Sink(Protocol):
    """Takes bytes of output files at offsets counted from the start of their tensor data."""

    def write(self, file: int, offset: int, data: memoryview) -> None: ...

    def sync(self) -> None: ...


class MemorySink:
    """Keeps every file's tensor data in one buffer of memory."""

    def __init__(self, files: Sequence[OutputFile]) -> None:
        import numpy as np

        self.buffers = [np.empty(file.data_bytes, dtype=np.uint8) for file in files]

    def write(self, file: int, offset: int, data: memoryview) -> None:
        import numpy as np

        self.buffers[file][offset : offset + len(data)] = np.frombuffer(data, dtype=np.uint8)

    def sync(self) -> None:
        """Memory needs no sync."""


def partial_path(target: Path) -> Path:
    """Where an output is built: beside its target, so that the final rename stays on one disk."""
    return target.parent / f".{target.name}.fluxsmith-partial"


class FileSink:
    """The files of one output while they are written.

    `target` is a file (one safetensors file) or a folder (shards, index and small files). The partial path is locked:
    a second writer of the same output is refused. `resume` keeps what an interrupted run has written.
    """

    def __init__(self, target: Path, files: Sequence[OutputFile], *, folder: bool, resume: bool) -> None:
        self.target, self.files, self.folder = target, files, folder
        self.root = partial_path(target)
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        self._fds: list[int] = []
        try:
            self._open(resume)
        except OSError as error:
            self.abandon()
            raise _disk_error(error, target, sum(file.size for file in files)) from None

    def _take_lock(self) -> int:
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise ResourceError(
                "output.in-use", f"another run is writing {self.target}", facts={"lock": self.root}, fix="wait for it, or choose another output"
            ) from None
        return fd

    def _open(self, resume: bool) -> None:
        for file in self.files:
            path = self.root / file.name
            fresh = not (resume and path.exists() and path.stat().st_size == file.size)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if fresh else 0), 0o644)
            self._fds.append(fd)
            if fresh and file.size:
                _allocate(fd, file.size)

    @property
    def journal(self) -> Path:
        """Where the run notes what is done."""
        return self.root / "journal"

    def write(self, file: int, offset: int, data: memoryview) -> None:
        """Put `data` at `offset` of a file's tensor data; safe from any number of threads.

        Raises ResourceError where the disk is full.
        """
        at = self.files[file].data_start + offset
        try:
            while len(data):
                written = os.pwrite(self._fds[file], data, at)
                data, at = data[written:], at + written
        except OSError as error:
            raise _disk_error(error, self.target, len(data)) from None

    def sync(self) -> None:
        """Bring what has been written to the disk."""
        for fd in self._fds:
            os.fdatasync(fd)

    def commit(self, metadata: Mapping[str, str], extra: Mapping[str, str]) -> None:
        """Write the headers and small files, sync, verify, and rename to the target."""
        for fd, file in zip(self._fds, self.files, strict=True):
            header = encode_header(file.tensors, metadata)
            if len(header) != file.data_start:
                raise AssertionError(f"header of {file.name} has {len(header)} bytes, {file.data_start} were planned")
            os.pwrite(fd, header, 0)
            os.fsync(fd)
        for name, text in extra.items():
            (self.root / name).write_text(text)
        for file in self.files:
            _verify(self.root / file.name, file)
        self._rename()

    def _rename(self) -> None:
        self.journal.unlink(missing_ok=True)
        (self.root / "lock").unlink(missing_ok=True)
        if not self.folder:
            os.replace(self.root / self.files[0].name, self.target)
            self._close()
            shutil.rmtree(self.root)
        elif self.target.exists():
            old = Path(tempfile.mkdtemp(dir=self.target.parent, prefix=f".{self.target.name}.old-"))
            os.rename(self.target, old / "x")
            os.rename(self.root, self.target)
            self._close()
            shutil.rmtree(old)
        else:
            os.rename(self.root, self.target)
            self._close()
        _sync_folder(self.target.parent)

    def keep(self) -> None:
        """Stop now, keeping what is written for `--resume`."""
        self.sync()
        self._close()

    def abandon(self) -> None:
        """Stop and remove everything; the target is untouched."""
        self._close()
        shutil.rmtree(self.root, ignore_errors=True)

    def _close(self) -> None:
        for fd in (*self._fds, self._lock):
            if fd >= 0:
                os.close(fd)
        self._fds, self._lock = [], -1


def index_json(files: Sequence[OutputFile]) -> str:
    """The index of a sharded checkpoint, as diffusers and transformers read it."""
    weight_map = {key: file.name for file in files for key in file.tensors}
    total = sum(file.data_bytes for file in files)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2) + "\n"


def _allocate(fd: int, size: int) -> None:
    """Reserve disk space now, so that a full disk shows before the work; some file systems can only be extended."""
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(fd, size)


def _verify(path: Path, file: OutputFile) -> None:
    """The header as a reader sees it must be the planned one, and the file must have its full length."""
    with path.open("rb") as stream:

        def read(offset: int, length: int) -> bytes:
            stream.seek(offset)
            return stream.read(length)

        header = parse_header(read, path.stat().st_size, path.name)
    if dict(header.tensors) != dict(file.tensors):
        raise FileError("output.verify", f"{path.name} does not read back as it was written", facts={"file": path})


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _disk_error(error: OSError, target: Path, size: int) -> ResourceError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(
            "output.disk-full",
            f"no room for {target}",
            facts={"needed": f"{size:,} bytes", "cause": error.strerror},
            fix="free some space, or write to another disk with -o",
        )
    return ResourceError("output.not-writable", f"cannot write {target}", facts={"cause": error.strerror})
