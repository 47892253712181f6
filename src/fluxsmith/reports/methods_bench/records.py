"""Scores in a file of JSON lines: one line for each child that was made, found again by a hash of all that decided it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

__all__ = ["Record", "Records", "key_of"]


@dataclass(frozen=True)
class Record:
    """The scores of one child: accuracy by skill, empty where the merge failed with `error`."""

    key: str
    name: str
    options: Mapping[str, Any]
    accuracy: Mapping[str, float]
    images: int
    seconds: float
    error: str = ""

    @property
    def mean(self) -> float:
        """The mean accuracy over skills."""
        return sum(self.accuracy.values()) / len(self.accuracy)


def key_of(*facts: object) -> str:
    """The hash of all that decides a score: recipe, code, inputs, seeds."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:20]


class Records:
    """The records of a file; a new one is appended at once, so that an interrupted run loses nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, Record] = {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for record in filter(None, map(_parse, text.splitlines())):
            self._found[record.key] = record
        self._separator = "" if not text or text.endswith("\n") else "\n"  # after a line that a crash cut off

    def find(self, key: str) -> Record | None:
        """The record of that key."""
        return self._found.get(key)

    def add(self, record: Record) -> Record:
        """Keep a record, in memory and at the end of the file."""
        self._found[record.key] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(self._separator + json.dumps(asdict(record)) + "\n")
        self._separator = ""
        return record


def _parse(line: str) -> Record | None:
    """The record of a line; None for one that a crash cut off."""
    try:
        return Record(**cast("dict[str, Any]", json.loads(line)))
    except (ValueError, TypeError):
        return None
