"""Targets that must not or cannot be written (checks 1 and 13)."""

import os
from collections.abc import Callable
from pathlib import Path

from bad_input.cases import AVERAGE, Arguments, Case, Yard
from bad_input.values import NAN, put_value

__all__ = ["OUTPUTS"]


def _at_input(place: Callable[[Yard, Path], Path], source: str = "a") -> Callable[[Yard], Arguments]:
    """The output is where `place` says, given the yard's input, a copy of one of the session's checkpoints."""

    def arrange(yard: Yard) -> Arguments:
        model = yard.copy(getattr(yard.tiny, source), "model" if source == "sharded" else "model.safetensors")
        return yard.merge(model, output=place(yard, model))

    return arrange


def _symlink(yard: Yard, model: Path) -> Path:
    link = yard.inputs / f"link{model.suffix}"
    link.symlink_to(model)
    return link


def _hard_link(yard: Yard, model: Path) -> Path:
    link = yard.inputs / "link.safetensors"
    os.link(model, link)
    return link


def _link_as_input(yard: Yard) -> Arguments:
    """The input is a link, the output the file that it points to."""
    model = yard.copy(yard.tiny.a, "model.safetensors")
    return yard.merge(_symlink(yard, model), output=model)


def _around(yard: Yard, model: Path) -> Path:
    return model.parent / ".." / model.parent.name / model.name


def _linked_folder(yard: Yard) -> Arguments:
    """The output lies in a folder that is an input by another name."""
    model = yard.copy(yard.tiny.sharded, "model")
    return yard.merge(model, output=_symlink(yard, model) / "merged.safetensors")


def _existing(name: str, make: Callable[[Path], object], *, force: bool = True) -> Callable[[Yard], Arguments]:
    """Something lies at the output already."""

    def arrange(yard: Yard) -> Arguments:
        output = yard.target.parent / name
        make(output)
        return ["merge", AVERAGE, "-m", f"a={yard.tiny.a}", "-m", f"b={yard.tiny.b}", "-o", output, *(["--force"] if force else [])]

    return arrange


def _folder_of(*names: str) -> Callable[[Path], None]:
    """A folder that holds files of these names; a name that ends in `/` is a folder."""

    def make(path: Path) -> None:
        path.mkdir()
        for name in names:
            (path / name).mkdir() if name.endswith("/") else (path / name).write_text("mine")

    return make


def _options(*options: object, output: str = "new.safetensors") -> Callable[[Yard], Arguments]:
    return lambda yard: yard.merge(yard.tiny.a, *options, output=yard.target.parent / output)


def _nan_into_new_folders(yard: Yard) -> Arguments:
    put_value(yard, NAN, at=7)
    return yard.merge(yard.broken, output=yard.root / "new" / "newer" / "merged.safetensors")


def _below_a_file(yard: Yard) -> Arguments:
    (yard.root / "file").write_text("mine")
    return yard.merge(yard.tiny.a, output=yard.root / "file" / "merged.safetensors")


def _partial_is_a_file(yard: Yard) -> Arguments:
    """Somebody's file has the name that unfinished outputs have."""
    output = yard.target.parent / "new.safetensors"
    output.with_name(f".{output.name}.fluxsmith-partial").write_text("mine")
    return yard.merge(yard.tiny.a, output=output)


IS_INPUT = "output.is-input"
INSIDE = "output.inside-input"
EXISTS = "output.exists"

OUTPUTS = [
    Case("output is an input", _at_input(lambda yard, model: model), 4, IS_INPUT, ["{inputs}/model.safetensors", "`a`"]),
    Case("output is an input by a way around", _at_input(_around), 4, IS_INPUT, ["{inputs}/model.safetensors"]),
    Case("output is a link to an input", _at_input(_symlink), 4, IS_INPUT, ["link.safetensors", "{inputs}/model.safetensors"]),
    Case("output is a hard link of an input", _at_input(_hard_link), 4, IS_INPUT, ["link.safetensors", "{inputs}/model.safetensors"]),
    Case("input is a link to the output", _link_as_input, 4, IS_INPUT, ["{inputs}/model.safetensors"]),
    Case("output is an input folder", _at_input(lambda yard, model: model, "sharded"), 4, IS_INPUT, ["{inputs}/model"]),
    Case("output is a link to an input folder", _at_input(_symlink, "sharded"), 4, IS_INPUT, ["{inputs}/link"]),
    Case("output is the folder of an input file", _at_input(lambda yard, model: model.parent), 4, IS_INPUT, ["{inputs}"]),
    Case(
        "output is a shard of an input", _at_input(lambda yard, model: min(model.glob("*.safetensors")), "sharded"),
        4, IS_INPUT, ["-00001-of-"],
    ),
    Case(
        "output is a file in an input folder", _at_input(lambda yard, model: model / "merged.safetensors", "sharded"),
        4, INSIDE, ["{inputs}/model"],
    ),
    Case(
        "output is a folder in an input folder", _at_input(lambda yard, model: model / "merged", "sharded"),
        4, INSIDE, ["{inputs}/model"],
    ),
    Case(
        "output is far inside an input folder", _at_input(lambda yard, model: model / "x" / "y" / "merged", "sharded"),
        4, INSIDE, ["{inputs}/model"],
    ),
    Case("output is in a link to an input folder", _linked_folder, 4, INSIDE, ["{inputs}/model"]),
    Case(
        "output exists", _existing("old.safetensors", lambda path: path.write_text("mine"), force=False),
        2, EXISTS, ["old.safetensors", "--force"],
    ),
    Case("output folder exists", _existing("old", _folder_of("model.safetensors"), force=False), 2, EXISTS, ["old", "--force"]),
    Case(
        "output is a dangling link", _existing("old.safetensors", lambda path: path.symlink_to("gone"), force=False),
        2, EXISTS, ["old.safetensors"],
    ),
    Case("a folder where a file is to be", _existing("old.safetensors", _folder_of()), 2, EXISTS, ["old.safetensors", "a folder"]),
    Case("a file where a folder is to be", _existing("old", lambda path: path.write_text("mine")), 2, EXISTS, ["old", "a file"]),
    Case(
        "--force on a folder with notes", _existing("old", _folder_of("model.safetensors", "notes.txt")),
        2, "output.not-replaceable", ["old", "notes.txt"],
    ),
    Case("--force on a folder with folders", _existing("old", _folder_of("vae/")), 2, "output.not-replaceable", ["old", "vae"]),
    Case(
        "--force on a folder with a hidden file", _existing("old", _folder_of("model.safetensors", ".env")),
        2, "output.not-replaceable", [".env"],
    ),
    Case("output below a file", _below_a_file, 5, "output.not-writable", ["file/merged.safetensors"]),
    Case("partial path taken by a file", _partial_is_a_file, 5, "output.not-writable", ["new.safetensors"]),
    Case("failure after new folders were made", _nan_into_new_folders, 4, "values.not-finite", ["{broken}"]),
    Case("too little memory", _options("--memory", "1MB"), 5, "plan.not-enough-memory", ["--memory", "allowed"]),
    Case("shards in one file", _options("--shard-size", "100KB"), 2, "usage.shards-in-a-file", ["new.safetensors"]),
]  # fmt: skip
