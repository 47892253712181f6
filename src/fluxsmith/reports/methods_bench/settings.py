"""The small grid search of the methods table: one option after another, in the order of AXES, the best value kept.

So a method with a scale and a density costs 5 + 2 trials and not 18. What a method has of AXES is searched, then half and
twice of its other numbers, then its words and switches; SEARCHED says it better for methods of another kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fluxsmith.methods import Method

__all__ = ["AXES", "MOST_TRIALS", "SEARCHED", "axes", "search", "setting_text"]

Axis = tuple[str, Sequence[Any]]

MOST_TRIALS = 8
"""Trials for one method, its default not counted."""

Mean = Callable[[Mapping[str, Any]], float | None]
"""Options -> the mean over skills, None where a method does not run with them."""

AXES: dict[str, Sequence[float]] = {
    "scale": (0.3, 0.5, 0.7, 1.5, 2.5),
    "weights": (0.3, 0.5, 0.7, 1.5),
    "density": (0.2, 0.8),
    "select_topk": (0.2, 0.5),
}
"""Option -> values that are tried beside the default. `weights` (one number for all inputs) only where it is no share."""

SEARCHED: dict[str, Sequence[Axis]] = {
    "linear": (),  # equal shares: there is nothing to search without knowing which skill is wanted
    "slerp": (),
    "nuslerp": (("over", ("rows",)),),
    "nearswap": (("t", (0.001, 0.01, 0.1)),),
    "fisher": (("floor", (1e-8, 1e-6, 1e-4)),),
    "regmean": (("alpha", (0.5, 0.7, 0.99)),),
    "lines": (("beta", (0.2, 0.6, 0.8)), ("alpha", (0.3, 0.4, 0.6))),
    "subspace_boost": (("scale", AXES["scale"]), ("share", (0.005, 0.05))),
}
"""Method -> its axes, in place of AXES."""


def axes(method: Method, most: int = MOST_TRIALS) -> list[Axis]:
    """What is searched for a method, at most `most` values in all."""
    found = list(SEARCHED[method.name]) if method.name in SEARCHED else list(_own(method))
    left, kept = most, list[Axis]()
    for name, values in found:
        if left > 0:
            kept.append((name, tuple(values)[:left]))
            left -= len(values)
    return kept


def _own(method: Method) -> Iterator[Axis]:
    options = method.options
    for name, values in AXES.items():
        if name in options and not (name == "weights" and _are_shares(method)):
            yield name, [value for value in values if value != options[name].default and _inside(method, name, value)]
    for option in options.values():
        if option.kind == "float" and option.name not in {*AXES, "tolerance"} and isinstance(option.default, float) and option.default:
            yield option.name, [value for value in (option.default / 2, 2 * option.default) if _inside(method, option.name, value)]
    for option in options.values():
        if option.kind == "word":
            yield option.name, [word for word in option.words if word != option.default]
        elif option.kind == "bool" and not option.required:
            yield option.name, [not option.default]


def _are_shares(method: Method) -> bool:
    """Whether equal weights change nothing, or only what `scale` does, too."""
    return "scale" in method.options or "normalize" in method.options or all(i.variadic for i in method.inputs)


def _inside(method: Method, name: str, value: float) -> bool:
    between = method.options[name].between
    return between is None or between.low <= value <= between.high


def search(method: Method, mean_of: Mean, most: int = MOST_TRIALS) -> dict[str, Any]:
    """The best options found; {} where nothing is better than the default."""
    best: dict[str, Any] = {}
    found = axes(method, most)
    highest = (mean_of({}) if found else None) or 0.0
    for name, values in found:
        before = dict(best)
        for value in values:
            mean = mean_of({**before, name: value})
            if mean is not None and mean > highest:
                best, highest = {**before, name: value}, mean
    return best


def setting_text(options: Mapping[str, Any]) -> str:
    """Options as a reader would write them: `scale 0.5, density 0.2`."""
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {str(value).lower()}" for name, value in options.items())
