"""What a file that is no safetensors file really is, from its first bytes: the parser's own word would hide it."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from fluxsmith.errors import FileError

__all__ = ["check_readable", "explain_foreign", "is_pickle", "reading"]

_PARTIAL = (".incomplete", ".part", ".partial", ".crdownload", ".aria2")


@contextmanager
def reading(path: str | os.PathLike[str]) -> Generator[None]:
    """Turns what the operating system objects to while `path` is read into a FileError."""
    try:
        yield
    except OSError as error:
        facts = {"file": path, "cause": error.strerror or error}
        raise FileError("file.unreadable", f"{path} cannot be read", facts=facts, fix="check its permissions and the disk") from None


def check_readable(path: Path) -> int:
    """The size of a file in bytes.

    Raises FileError where it is missing, a dangling link, a folder, empty, or a download that has not finished.
    """
    facts = {"file": path}
    if path.is_symlink() and not path.exists():
        raise FileError(
            "file.dangling-link",
            f"{path.name} is a link to a file that is gone",
            facts={**facts, "link to": os.readlink(path)},
            fix="download it again, or name the file itself",
        )
    if not path.exists():
        raise FileError("file.not-found", f"{path} does not exist", facts=facts, fix="check the path")
    if path.is_dir():
        raise FileError("file.is-folder", f"{path} is a folder where a file was expected", facts=facts)
    if path.suffix in _PARTIAL:
        raise FileError(
            "file.unfinished-download", f"{path.name} is a download that has not finished", facts=facts, fix="download it again"
        )
    size = path.stat().st_size
    if size == 0:
        raise FileError("file.empty", f"{path.name} is empty (0 bytes)", facts=facts, fix="download it again")
    return size


def is_pickle(head: bytes) -> bool:
    """Whether these are the first bytes of a torch.save file, in its zip format or an older one."""
    return head.startswith((b"PK\x03\x04", b"\x80")) and not _may_be_safetensors(head)


def _may_be_safetensors(head: bytes) -> bool:
    """A length below 4 GB, then JSON: by chance the length's first bytes may be those of another format."""
    return head[4:9] == b"\0\0\0\0{"


def explain_foreign(name: str, head: bytes, size: int) -> FileError | None:
    """The error for a file whose first bytes (64 are enough) are not a safetensors header; None where they may be."""
    if _may_be_safetensors(head):
        return None
    facts = {"file": name}
    if head.startswith(b"version https://git-lfs"):
        return FileError(
            "file.lfs-pointer",
            f"{name} is a git-lfs pointer of {size} bytes, not the weights",
            facts={**facts, "expected": "a safetensors file", "found": head.split(b"\n")[0].decode(errors="replace")},
            fix="git lfs pull, or download the file from its page",
        )
    if head.lstrip()[:1] == b"<":
        return FileError(
            "file.html",
            f"{name} is a web page, not weights: the download was answered with HTML",
            facts={**facts, "found": head[:40].decode(errors="replace").strip()},
            fix="download it again; a gated repository needs `hf auth login`",
        )
    if is_pickle(head):
        return FileError(
            "file.pickle",
            f"{name} is a pickle (torch.save), which can run code when it is opened",
            facts={**facts, "expected": "a safetensors file"},
            fix="add --allow-pickle to read its tensors without running anything (weights_only)",
        )
    if head.startswith(b"GGUF"):
        return FileError(
            "file.gguf",
            f"{name} is a GGUF file, where a safetensors file is expected",
            facts=facts,
            fix="name the file itself instead of its folder; on the Hub it must end in .gguf",
        )
    return None
