"""Remedies that errors name: commands of the program that there are."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import fluxsmith
from fluxsmith.cli.main import COMMANDS

SOURCE = Path(fluxsmith.__file__).parent


def remedies() -> Iterator[tuple[str, str]]:
    """Every text of the package that an error gets as its `fix`, directly or by a variable of that name, with its place."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            by_name = isinstance(node, ast.Assign) and any(isinstance(target, ast.Name) and target.id == "fix" for target in node.targets)
            if isinstance(node, ast.Assign | ast.keyword) and (by_name or getattr(node, "arg", None) == "fix"):
                for part in ast.walk(node.value):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield f"{path.relative_to(SOURCE)}:{part.lineno}", part.value


def test_every_command_in_a_remedy_is_one_of_the_program() -> None:
    named = [(place, word) for place, text in remedies() for word in re.findall(r"\bfluxsmith ([a-z][a-z-]*)", text)]
    assert len(named) > 10
    assert [(place, word) for place, word in named if word not in COMMANDS] == []
