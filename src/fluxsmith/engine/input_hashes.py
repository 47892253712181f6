"""Hashing the inputs beside the run; files seen before are not read again."""

import threading
from collections.abc import Sequence

from fluxsmith.errors import FileError
from fluxsmith.io.checkpoint import WeightFile
from fluxsmith.io.hashing import HashMemory, content_hash
from fluxsmith.io.sniff import reading

__all__ = ["InputHashes"]


class InputHashes:
    """The hashes of files, computed in a thread of their own from the moment this is made."""

    def __init__(self, files: Sequence[WeightFile], memory: HashMemory | None = None) -> None:
        self._memory = memory or HashMemory()
        self._found: dict[str, str] = {}
        self._unknown: list[WeightFile] = []
        for file in files:
            known = self._memory.find(file)
            if known:
                self._found[file.path] = known
            else:
                self._unknown.append(file)
        self._end = threading.Event()
        self._error: FileError | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for file in self._unknown:
                with reading(file.path):
                    value = content_hash(file.path, self._end.is_set)
                if value is not None:
                    self._found[file.path] = value
                    self._memory.keep(file, value)
        except FileError as error:
            self._error = error

    def wait(self) -> dict[str, str]:
        """All hashes by path; raises FileError where a file could not be read."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found

    def cancel(self) -> None:
        """Stop soon; what is half done is forgotten."""
        self._end.set()
        self._thread.join()
