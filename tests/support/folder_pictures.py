"""Everything that lies in a folder, as plain data: two equal pictures mean that nothing was changed."""

import hashlib
import os
from pathlib import Path

__all__ = ["picture"]


def picture(folder: Path) -> dict[str, str]:
    """Relative path -> kind, mode, inode and content of everything below a folder, hidden things and links too."""
    found: dict[str, str] = {}
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(root, name)
            found[str(path.relative_to(folder))] = _describe(path)
    return found


def _describe(path: Path) -> str:
    stat = path.lstat()
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    if path.is_dir():
        return f"folder {stat.st_mode:o} {stat.st_ino}"
    return f"file {stat.st_mode:o} {stat.st_ino} {stat.st_mtime_ns} {hashlib.sha256(path.read_bytes()).hexdigest()}"
