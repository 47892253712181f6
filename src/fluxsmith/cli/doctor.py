"""`fluxsmith doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path

import click

from fluxsmith.cli.console import Console, bytes_text, table
from fluxsmith.cli.options import talk_options

__all__ = ["command"]

_PACKAGES = ("torch", "numpy", "safetensors", "huggingface_hub", "pydantic", "click", "rich", "ruamel.yaml", "blake3")
_EXTRAS = {"generate": ("diffusers", "transformers", "accelerate", "pillow", "scikit-learn"), "gguf": ("gguf",)}


@click.command("doctor")
@talk_options
def command(console: Console) -> None:
    """Show versions, devices and settings, and where each of them comes from. There is no hidden settings file.

    \b
    fluxsmith doctor
    fluxsmith doctor --json
    """
    facts = {"machine": _machine(), "packages": _packages(), "devices": _devices(), "settings": _settings()}
    text = "\n\n".join(
        f"{title}\n" + table([(f"  {key}", *((value,) if isinstance(value, str) else value)) for key, value in rows.items()])
        for title, rows in facts.items()
    )
    console.data(text, facts)


def _machine() -> dict[str, str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "system": platform.platform(),
        "python": f"{platform.python_version()} ({sys.executable})",
        "cores": str(os.cpu_count()),
        "memory": bytes_text(memory),
        "disk here": f"{bytes_text(shutil.disk_usage('.').free)} free",
    }


def _packages() -> dict[str, str]:
    found: dict[str, str] = {}
    for extra, names in {"": _PACKAGES, **_EXTRAS}.items():
        for name in names:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = f"missing: pip install 'fluxsmith{f'[{extra}]' if extra else ''}'"
    return found


def _devices() -> dict[str, str]:
    import torch

    found = {"cpu": torch.backends.cpu.get_cpu_capability()}
    if torch.cuda.is_available():
        found["cuda"] = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        found["mps"] = "available"
    return found


def _settings() -> dict[str, tuple[str, str]]:
    """Value and source of everything outside a recipe that changes what fluxsmith does."""
    from huggingface_hub import constants

    from fluxsmith.io.hashing import HashMemory
    from fluxsmith.layouts.families import tables_folder

    def of(name: str, value: str) -> tuple[str, str]:
        return value, f"environment {name}" if os.environ.get(name) else "default"

    return {
        "Hub endpoint": of("HF_ENDPOINT", os.environ.get("HF_ENDPOINT", constants.ENDPOINT)),
        "Hub cache": of("HF_HOME", constants.HF_HUB_CACHE),
        "Hub token": (
            "present" if Path(constants.HF_TOKEN_PATH).exists() or os.environ.get("HF_TOKEN") else "none",
            "HF_TOKEN or hf auth login",
        ),
        "hashes of inputs": of("XDG_CACHE_HOME", str(HashMemory().path)),
        "families' tables": of("FLUXSMITH_TABLES", str(tables_folder())),
        "threads": (str(min(os.cpu_count() or 1, 16)), "default; --threads"),
        "date in outputs": of("SOURCE_DATE_EPOCH", os.environ.get("SOURCE_DATE_EPOCH", "none")),
        "tracebacks": of("FLUXSMITH_DEBUG", os.environ.get("FLUXSMITH_DEBUG", "off")),
    }
