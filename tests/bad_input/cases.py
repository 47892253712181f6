"""What a case is: how a fault is arranged, and what the program must say to it."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.tiny_flux import TinyCheckpoints

__all__ = ["AVERAGE", "Arguments", "Case", "Yard"]

AVERAGE = "0.5*a + 0.5*b"
Arguments = Sequence[object]


@dataclass(frozen=True)
class Yard:
    """A folder for one case: `inputs` are made there, `target` is where the output would go.

    An older output lies at the target already, with a file of somebody else beside it: neither may change.
    """

    root: Path
    tiny: TinyCheckpoints

    @property
    def inputs(self) -> Path:
        return self.root / "inputs"

    @property
    def target(self) -> Path:
        return self.root / "out" / "merged.safetensors"

    @property
    def broken(self) -> Path:
        """The input that a case breaks."""
        return self.inputs / "broken.safetensors"

    def prepare(self) -> None:
        """Make the folders, the older output and its neighbour."""
        self.inputs.mkdir()
        self.target.parent.mkdir()
        self.target.write_text("an older output")
        (self.target.parent / "neighbour.txt").write_text("not to be touched")

    def copy(self, source: Path, name: str = "broken.safetensors") -> Path:
        """A copy of one of the session's checkpoints, to be broken."""
        place = self.inputs / name
        return Path(shutil.copytree(source, place) if source.is_dir() else shutil.copy(source, place))

    def merge(self, first: object, *more: object, formula: str = AVERAGE, b: object = None, output: object = None) -> Arguments:
        """Arguments of a merge of `first` with a sound checkpoint (or `b`) over the older output."""
        return ["merge", formula, "-m", f"a={first}", "-m", f"b={b or self.tiny.b}", "-o", output or self.target, "--force", *more]

    def recipe(self, text: str, *more: object, name: str = "recipe.yaml") -> Arguments:
        """Arguments of a merge by a recipe file; `{a}`, `{b}`, `{c}` and `{schnell}` in the text are checkpoints."""
        file = self.inputs / name
        file.write_text(self.filled(text))
        return ["merge", file, "-o", self.target, "--force", *more]

    def filled(self, text: str) -> str:
        """A text with the paths of checkpoints in it."""
        for name in ("a", "b", "c", "schnell"):
            text = text.replace(f"{{{name}}}", str(getattr(self.tiny, name)))
        return text


@dataclass(frozen=True)
class Case:
    """A fault. `arrange` makes it and returns the arguments of the run.

    `words` must stand in the message; `{broken}` in them is the path of the yard's broken input, `{inputs}` its folder.
    `fix` says whether a remedy is due (`fix` or a hint such as `did you mean`).
    """

    name: str
    arrange: Callable[[Yard], Arguments]
    code: int
    error: str
    words: Sequence[str] = field(default=())
    fix: bool = True

    def __str__(self) -> str:
        return self.name
