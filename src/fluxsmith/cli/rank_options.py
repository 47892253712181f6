"""The flags that choose a rank, and the rule that they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from fluxsmith.errors import UsageError

if TYPE_CHECKING:
    from fluxsmith.adapters.extracting.rank import RankRule

__all__ = ["rank_options", "rule_from"]

_FLAGS = ("rank", "energy", "threshold", "ratio", "cumulative")


def rank_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--rank`, `--energy`, `--threshold`, `--ratio`, `--cumulative` and `--rank-multiple`."""
    options = (
        click.option("--rank", type=int, metavar="R", help="The same rank everywhere."),
        click.option("--energy", type=float, metavar="Q", help="The least rank with this share of the norm, such as 0.95."),
        click.option("--threshold", type=float, metavar="T", help="Singular values above T."),
        click.option("--ratio", type=float, metavar="Q", help="Singular values above Q times the largest."),
        click.option("--cumulative", type=float, metavar="Q", help="The least rank with this share of the sum of singular values."),
        click.option("--rank-multiple", type=int, default=1, metavar="N", help="Round ranks up to multiples of N."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def rule_from(arguments: Mapping[str, Any], *, default: int | None) -> RankRule | None:
    """The rule that the flags mean; rank `default` where none is given (None: no rule).

    Raises UsageError where two are given.
    """
    from fluxsmith.adapters.extracting.rank import RankRule

    given = [flag for flag in _FLAGS if arguments[flag] is not None]
    if len(given) > 1:
        raise UsageError("usage.rank-rule", f"--{given[0]} and --{given[1]} exclude each other", fix="give one of them")
    if not given:
        return None if default is None else RankRule("rank", default, arguments["rank_multiple"])
    return RankRule(given[0], arguments[given[0]], arguments["rank_multiple"])  # pyright: ignore[reportArgumentType]
