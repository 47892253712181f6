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
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from fluxsmith.errors import FileError, ResourceError
from fluxsmith.io.hashing import SHA256_KEY, sha256_of_tensors
from fluxsmith.io.header import parse_header
from fluxsmith.io.shards import OutputFile

__all__ = ["FileSink", "MemorySink", "Sink", "disk_error", "held_bytes", "partial_path"]


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
    target = Path(os.path.abspath(target))  # `.` has no name, `x/..` the wrong one
    return target.parent / f".{target.name}.fluxsmith-partial"


def held_bytes(target: Path) -> int:
    """The room on the disk that an interrupted run of this output holds already."""
    root = partial_path(target)
    return sum(entry.stat().st_blocks * 512 for entry in os.scandir(root)) if root.is_dir() else 0


class FileSink:
    """The files of one output while they are written.

    `target` is a file (one safetensors file) or a folder (shards, index and small files). The partial path is locked:
    a second writer of the same output is refused. What an interrupted run has left there stays until `open` is called.
    """

    def __init__(self, target: Path, files: Sequence[OutputFile], *, folder: bool) -> None:
        self.target, self.files, self.folder = target, files, folder
        self.root = partial_path(target)
        self._new = [path for path in self.root.parents if not path.exists()]
        self._fds: list[int] = []
        self._lock = -1
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_lock()
        except OSError as error:
            self._remove_new_folders()
            raise disk_error(error, target) from None

    def open(self, *, keep: bool) -> bool:
        """Make the files ready to be written. With `keep`, what lies there is used, where every file has its length.

        Returns whether it was kept. Raises ResourceError where the disk has no room.
        """
        keep = keep and all(_size(self.root / file.name) == file.size for file in self.files)
        try:
            self._clear({"lock", self.journal.name, *(file.name.split("/")[0] for file in self.files)} if keep else {"lock"})
            self._open(fresh=not keep)
        except OSError as error:
            if keep:
                self.release()
            else:
                self.abandon()
            raise disk_error(error, self.target, sum(file.size for file in self.files)) from None
        return keep

    def _clear(self, kept: set[str]) -> None:
        """Remove what an earlier run left, but for `kept`: its files need not be those of this one."""
        for entry in os.scandir(self.root):
            if entry.name in kept:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry)
            else:
                os.unlink(entry)

    def _take_lock(self) -> int:
        path = self.root / "lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not (path.exists() and os.path.samestat(os.fstat(fd), path.stat())):
                raise BlockingIOError  # a run that was just ending has taken its lock away
        except BlockingIOError:
            os.close(fd)
            fix = "wait for it, or choose another output"
            raise ResourceError("output.in-use", f"another run is writing {self.target}", facts={"lock": self.root}, fix=fix) from None
        return fd

    def _open(self, *, fresh: bool) -> None:
        for file in self.files:
            (self.root / file.name).parent.mkdir(exist_ok=True)  # a pipeline has a folder for every component
            fd = os.open(self.root / file.name, os.O_RDWR | os.O_CREAT, 0o644)
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
            raise disk_error(error, self.target, len(data)) from None

    def sync(self) -> None:
        """Bring what has been written to the disk.

        Raises ResourceError where the disk does not take it.
        """
        try:
            for fd in self._fds:
                os.fdatasync(fd)
        except OSError as error:
            raise disk_error(error, self.target) from None

    def commit(self, metadata: Mapping[str, str], extra: Mapping[str, str], copies: Mapping[str, str] | None = None) -> None:
        """Write the headers, copies of other files (name -> source) and small texts, sync, verify, and rename to the target.

        Where the metadata have a place for ModelSpec's sha256, every file gets its own; that reads the files once more.
        Raises ResourceError where the disk does not take them; the target is then as it was.
        """
        try:
            self._write_headers(metadata)
            for name, source in (copies or {}).items():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, self.root / name)
            for name, text in extra.items():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                (self.root / name).write_text(text)
            for file in self.files:
                _verify(self.root / file.name, file)
            self._rename()
        except OSError as error:
            raise disk_error(error, self.target) from None

    def _write_headers(self, metadata: Mapping[str, str]) -> None:
        for fd, file in zip(self._fds, self.files, strict=True):
            own = {SHA256_KEY: sha256_of_tensors(self.root / file.name, file.data_start)} if SHA256_KEY in metadata else {}
            header = file.header({**metadata, **own})
            if len(header) != file.data_start:
                raise AssertionError(f"header of {file.name} has {len(header)} bytes, {file.data_start} were planned")
            os.pwrite(fd, header, 0)
            os.fsync(fd)

    def _rename(self) -> None:
        self.journal.unlink(missing_ok=True)
        (self.root / "lock").unlink(missing_ok=True)
        target = Path(os.path.abspath(self.target))
        if not self.folder:
            os.replace(self.root / self.files[0].name, target)
            self._close()
            shutil.rmtree(self.root)
        elif target.exists():
            self._exchange(target)
        else:
            os.rename(self.root, target)
            self._close()
        _sync_folder(target.parent)

    def _exchange(self, target: Path) -> None:
        """Put the new folder in the place of the old one, which comes back where that fails."""
        old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old-"))
        try:
            os.rename(target, old / "x")
            os.rename(self.root, target)
        except OSError:
            if (old / "x").exists():
                os.rename(old / "x", target)
            old.rmdir()
            raise
        self._close()
        shutil.rmtree(old)

    def keep(self) -> None:
        """Stop now, keeping what is written for `--resume`."""
        self.sync()
        self.release()

    def release(self) -> None:
        """Let go of what an earlier run has left, as it is."""
        self._close()

    def abandon(self) -> None:
        """Stop and remove everything; the target is untouched."""
        self._close()
        shutil.rmtree(self.root, ignore_errors=True)
        self._remove_new_folders()

    def _remove_new_folders(self) -> None:
        """The folders that were made for the output, where nothing else has come into them."""
        with suppress(OSError):
            for path in self._new:
                path.rmdir()

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
    if file.container == "gguf":
        _verify_gguf(path, file)
        return
    with path.open("rb") as stream:

        def read(offset: int, length: int) -> bytes:
            stream.seek(offset)
            return stream.read(length)

        header = parse_header(read, path.stat().st_size, path.name)
    if dict(header.tensors) != dict(file.tensors):
        raise FileError("output.verify", f"{path.name} does not read back as it was written", facts={"file": path})


def _verify_gguf(path: Path, file: OutputFile) -> None:
    with path.open("rb") as stream:
        header = stream.read(file.data_start)
    if header[:4] != b"GGUF" or any(name.encode() not in header for name in file.tensors) or path.stat().st_size != file.size:
        raise FileError("output.verify", f"{path.name} does not read back as it was written", facts={"file": path})


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def disk_error(error: OSError, target: Path, size: int | None = None) -> ResourceError:
    """What an error of the operating system means for who wanted to write `size` bytes to `target`."""
    facts = {"folder": target.parent, "cause": error.strerror}
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        needed = {} if size is None else {"needed": f"{size:,} bytes"}
        fix = "free some space, or write to another disk with -o"
        return ResourceError("output.disk-full", f"no room for {target}", facts=facts | needed, fix=fix)
    return ResourceError("output.not-writable", f"cannot write {target}", facts=facts, fix="write to another path with -o")
