"""What a merge method is: one plain function from tiles to a tile, whose signature is its declaration.

    @merge_method
    def weighted_sum(a: Weight, b: Weight, *, alpha: float = 0.5) -> Weight: ...

Positional parameters are tensors in weight or delta space (`*models` takes any number), keyword-only parameters are
options: `float`, `int`, `bool`, a `Literal` of words, or `PerInput` for one number per input of the variadic
parameter. Options may differ from tensor to tensor; the engine resolves them. Two more kinds of keyword-only
parameters are filled by the engine: `Measured` (a statistic of whole tensors, declared in `statistics=`) and `Masks`
(random numbers keyed by seed, tensor and element).

A method sees float tiles (flat, equal length) of whole tensors' consecutive elements; it must not change its inputs.
With `whole=True` it is given whole tensors in their shapes instead, and the planner counts their memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, get_origin, get_type_hints, overload

from fluxsmith.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from fluxsmith.methods.statistics import Statistic

    Weight = Tensor
    Delta = Tensor
else:

    class Weight:
        """A tensor of weights, such as a checkpoint has."""

    class Delta:
        """A difference of weights."""


__all__ = ["Delta", "Input", "Masks", "Measured", "Method", "Option", "PerInput", "Weight", "merge_method"]

Measured = Any
PerInput = Sequence[float]


class Masks(Protocol):
    """Random masks, the same for one seed, tensor and element on every machine and in every tiling."""

    def keep(self, index: int, probability: float, like: Tensor) -> Tensor:
        """A bool tile for input number `index`: True with `probability`, independent for every element."""
        ...


@dataclass(frozen=True)
class Input:
    """A tensor parameter. `variadic` takes one or more."""

    name: str
    space: Literal["weight", "delta"]
    variadic: bool = False


@dataclass(frozen=True)
class Option:
    """A number or word that a recipe may set. `per_input`: one number for each variadic input."""

    name: str
    kind: Literal["float", "int", "bool", "word"]
    default: Any
    per_input: bool = False
    words: tuple[str, ...] = ()

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True)
class Method:
    """A registered method: the function and what its signature says."""

    name: str
    function: Callable[..., Any]
    inputs: tuple[Input, ...]
    options: Mapping[str, Option]
    returns: Literal["weight", "delta"]
    statistics: Mapping[str, Statistic] = field(default_factory=dict[str, Any])
    random: str | None = None
    whole: bool = False
    propagates: bool = False
    skips_zero: bool = False
    paper: str = ""

    @property
    def summary(self) -> str:
        """The first line of the method's documentation."""
        return (inspect.getdoc(self.function) or "").split("\n")[0]

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Build a recipe node: `fs.weighted_sum(a, b, alpha=0.5)`."""
        return _node_builder[-1](self, inputs, options)


# Methods know nothing of recipes, which stand above them; recipes say here how a call becomes a node.
_node_builder: list[Callable[[Method, Sequence[Any], Mapping[str, Any]], Any]] = []


def build_nodes_with(builder: Callable[[Method, Sequence[Any], Mapping[str, Any]], Any]) -> None:
    """Say what calling a method gives."""
    _node_builder.append(builder)


_SPACES: dict[Any, Literal["weight", "delta"]] = {Weight: "weight", Delta: "delta"}


@overload
def merge_method(function: Callable[..., Any], /) -> Method: ...
@overload
def merge_method(
    *,
    statistics: Mapping[str, Statistic] | None = None,
    whole: bool = False,
    propagates: bool = False,
    skips_zero: bool = False,
    paper: str = "",
    name: str | None = None,
) -> Callable[[Callable[..., Any]], Method]: ...


def merge_method(
    function: Callable[..., Any] | None = None,
    /,
    *,
    statistics: Mapping[str, Statistic] | None = None,
    whole: bool = False,
    propagates: bool = False,
    skips_zero: bool = False,
    paper: str = "",
    name: str | None = None,
) -> Method | Callable[[Callable[..., Any]], Method]:
    """Make a method of a function and register it under its name.

    `statistics` maps keyword-only parameters to what is measured over whole tensors beforehand; `propagates` says
    that a NaN in any input comes out (so that inputs need no check of their own), `skips_zero` that inputs of weight
    zero need not be read; `paper` is the source.

    Raises UsageError where the signature cannot be one.
    """

    def declare(f: Callable[..., Any]) -> Method:
        from fluxsmith.methods import register

        traits = {"whole": whole, "propagates": propagates, "skips_zero": skips_zero, "paper": paper}
        method = _read_signature(f, dict(statistics or {}), name or f.__name__, traits)
        register(method)
        return method

    return declare if function is None else declare(function)


def _read_signature(function: Callable[..., Any], statistics: Mapping[str, Statistic], name: str, traits: Mapping[str, Any]) -> Method:
    hints = get_type_hints(function)
    inputs: list[Input] = []
    options: dict[str, Option] = {}
    random: str | None = None
    for parameter in inspect.signature(function).parameters.values():
        hint = hints.get(parameter.name)
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            inputs.append(_tensor_input(name, parameter, hint))
        elif parameter.name in statistics:
            continue
        elif hint is Masks:
            random = parameter.name
        else:
            options[parameter.name] = _option(name, parameter, hint)
    returns = _SPACES.get(hints.get("return"))
    if not inputs or returns is None:
        raise UsageError("method.signature", f"method `{name}` needs tensor parameters and a return annotation (Weight or Delta)")
    return Method(name, function, tuple(inputs), options, returns, statistics, random, **traits)


def _tensor_input(method: str, parameter: inspect.Parameter, hint: Any) -> Input:
    space = _SPACES.get(hint)
    if space is None:
        raise UsageError(
            "method.signature",
            f"parameter `{parameter.name}` of method `{method}` must be annotated Weight or Delta",
            fix=f"write `{parameter.name}: fs.Weight`; options come after a `*`",
        )
    return Input(parameter.name, space, parameter.kind is inspect.Parameter.VAR_POSITIONAL)


def _option(method: str, parameter: inspect.Parameter, hint: Any) -> Option:
    kinds: dict[Any, Literal["float", "int", "bool"]] = {float: "float", int: "int", bool: "bool"}
    if hint in kinds:
        return Option(parameter.name, kinds[hint], parameter.default)
    if get_origin(hint) is Literal:
        return Option(parameter.name, "word", parameter.default, words=tuple(map(str, get_args(hint))))
    if hint == PerInput:
        return Option(parameter.name, "float", parameter.default, per_input=True)
    raise UsageError(
        "method.signature",
        f"option `{parameter.name}` of method `{method}` must be annotated float, int, bool, Literal[...] or PerInput",
    )
