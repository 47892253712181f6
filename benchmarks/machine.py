"""What the numbers were measured on and with."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["machine", "versions"]


def machine(cores: int, work: Path) -> str:
    """The machine in one line: processor, cores used and present, memory, system, file system of the work folder."""
    present = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return f"{_processor()}, {cores} of {present} cores, {memory:.0f} GiB of memory, {system}, {_file_system(work)}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    name = named.get("model name", platform.machine())
    detail = ", ".join(f"{key} {named[key]}" for key in ("cpu family", "model", "stepping") if key in named)
    return f"{name} ({detail})" if detail else name


def _file_system(path: Path) -> str:
    """The type of the file system that holds a path: that of the longest mount point above it."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return "unknown file system"
    above = [(len(point), kind) for point, kind in mounts if path.resolve().is_relative_to(point)]
    return max(above, default=(0, "unknown file system"))[1]


def versions() -> str:
    """Versions of what takes part in our merges."""
    found = [f"Python {sys.version.split()[0]}"]
    for package in ("fluxsmith", "torch", "numpy", "safetensors", "blake3"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
