"""The finished modules of an extraction beside its target, so that an interrupted run can go on.

A folder with one safetensors file for each canonical tensor (a piece); a file that is there is whole, as it was renamed into its place.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxsmith.adapters.extracting.findings import Finding
from fluxsmith.adapters.module import Span, Target
from fluxsmith.adapters.tensors import ModuleTensors
from fluxsmith.errors import IncompatibleError, ResourceError
from fluxsmith.io.writer import disk_error

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Scratch"]


class Scratch:
    """The pieces of one target. `digest` names the work: pieces of other work are not used.

    With `resume` pieces of an earlier run are kept, else they are removed. Raises IncompatibleError where there are
    pieces of other work to go on with, ResourceError where another run uses them or the disk takes none.
    """

    def __init__(self, target: Path, digest: str, *, resume: bool) -> None:
        self.target = Path(os.path.abspath(target))
        self.root = self.target.parent / f".{self.target.name}.fluxsmith-scratch"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
            self._take_lock()
            self._begin(digest, resume)
        except OSError as error:
            raise disk_error(error, self.target) from None

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            fix = "wait for it, or choose another output"
            raise ResourceError("output.in-use", f"another run is writing {self.target}", facts={"lock": self.root}, fix=fix) from None

    def _begin(self, digest: str, resume: bool) -> None:
        note = self.root / "work"
        known = note.read_text() if note.exists() else None
        if resume and known not in (None, digest):
            self.close()
            raise IncompatibleError(
                "output.other-run",
                f"what is kept beside {self.target} belongs to other inputs or options",
                facts={"kept": self.root},
                fix="leave --resume out to begin anew",
            )
        if not resume:
            for path in self.root.iterdir():
                if path.name != "lock":
                    path.unlink()
        note.write_text(digest)

    def pieces(self) -> set[int]:
        """The numbers of the pieces that are there."""
        return {int(path.stem) for path in self.root.glob("*.safetensors")}

    def put(self, number: int, made: Sequence[tuple[ModuleTensors | None, Finding]]) -> None:
        """Keep a piece: modules with what was found of them; on the disk when this returns."""
        from safetensors.torch import save

        tensors = {f"{i}.{role}": factor for i, (module, _) in enumerate(made) if module for role, factor in module.factors.items()}
        facts = json.dumps([_facts(module, finding) for module, finding in made])
        final = self.root / f"{number:06d}.safetensors"
        fresh = final.with_suffix(".new")
        try:
            with fresh.open("wb") as file:
                file.write(save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, {"facts": facts}))
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, final)
        except OSError as error:
            raise disk_error(error, self.target) from None

    def get(self, number: int) -> list[tuple[ModuleTensors | None, Finding]]:
        """A piece as it was put."""
        from safetensors import safe_open

        with safe_open(self.root / f"{number:06d}.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = json.loads(file.metadata()["facts"])
        made: list[tuple[ModuleTensors | None, Finding]] = []
        for i, fact in enumerate(facts):
            prefix = f"{i}."
            made.append(_from_facts(fact, {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}))
        return made

    def close(self) -> None:
        """Let go of the pieces, which stay."""
        os.close(self._lock)

    def remove(self) -> None:
        """Remove everything."""
        self.close()
        shutil.rmtree(self.root, ignore_errors=True)


def _facts(module: ModuleTensors | None, finding: Finding) -> dict[str, Any]:
    return {"finding": dataclasses.asdict(finding)} if module is None else {
        "target": dataclasses.asdict(module.target), "algorithm": module.algorithm, "settings": dict(module.settings),
        "finding": dataclasses.asdict(finding),
    }  # fmt: skip


def _from_facts(fact: Mapping[str, Any], factors: Mapping[str, Tensor]) -> tuple[ModuleTensors | None, Finding]:
    if "target" not in fact:
        return None, Finding(**fact["finding"])
    target: dict[str, Any] = dict(fact["target"])
    target["shape"], target["parts"] = tuple(target["shape"]), tuple(target["parts"]) if target["parts"] else None
    target["spans"] = tuple(Span(**span) for span in target["spans"])
    return ModuleTensors(Target(**target), fact["algorithm"], factors, fact["settings"]), Finding(**fact["finding"])
