"""Runs of the program: in this process, which is quick, or in a process of its own, which can be killed."""

import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO

__all__ = ["CliRun", "run_cli", "start_cli"]

START = "from fluxsmith.cli.main import main; main()"


@dataclass(frozen=True)
class CliRun:
    """How a run of the program ended."""

    code: int
    out: str
    err: str


def run_cli(*arguments: object) -> CliRun:
    """`fluxsmith ARGUMENTS` in this process."""
    from fluxsmith.cli.main import main

    out, err = StringIO(), StringIO()
    code: object = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code or 0
    assert isinstance(code, int), f"the exit code is {code!r}"
    return CliRun(code, out.getvalue(), err.getvalue())


def start_cli(*arguments: object, before: str = "") -> "subprocess.Popen[str]":
    """`fluxsmith ARGUMENTS` in a process of its own; `before` is Python that runs first there."""
    command = [sys.executable, "-c", f"{before}\n{START}", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
