"""What a merge method is: one plain function from tiles to a tile, whose signature is its declaration.

    @merge_method
    def weighted_sum(a: Weight, b: Weight, *, alpha: float | Param = 0.5) -> Weight: ...

Positional parameters are tensors (`*models` takes any number): `Weight`, `Delta`, `Param` (numbers that are no weights,
such as masks), or `Same` (any of these; all inputs that say so are of one space, and the result is, too).
Keyword-only parameters are options: `float`, `int`, `bool`, a `Literal` of words, `Share` (a float from 0 to 1), `NonNegative` or any
`Annotated[float, Between(low, high)]`; `PerInput` for one number per input of the variadic parameter, `Each` (and
`EachShare`) where one number may stand for all of them (the function is given one per input); `float | Param` for a
number or a tensor of numbers, and `PerInputParam` for one tensor per input of the variadic parameter. Numbers may
differ from tensor to tensor; the engine resolves them. Two more kinds of keyword-only parameters are filled by the
engine: `Measured` (a statistic of whole tensors, declared in `statistics=`) and `Masks` (random numbers keyed by seed,
tensor and element).

What a method sees depends on its unit:

    (default)    flat float tiles of equal length, consecutive elements of the tensors
    rows=True    matrices [rows, width]: whole rows along dim 0 of the tensors; a vector is one row
    whole=True   whole tensors in their shapes; the planner counts their memory

A method must not change its inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, get_args, get_origin, get_type_hints, overload

from fluxsmith.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from fluxsmith.methods.statistics import Statistic

    Weight = Tensor
    Delta = Tensor
    Param = Tensor
    Same = Tensor
else:

    class Weight:
        """A tensor of weights, such as a checkpoint has."""

    class Delta:
        """A difference of weights."""

    class Param:
        """A tensor of numbers that are no weights: a mask, an importance, a coefficient per element."""

    class Same:
        """A tensor of any space; all that say so are of one space, and so is a result that says so."""


__all__ = [
    "Between", "Delta", "Each", "EachShare", "Input", "Masks", "Measured", "Method", "NonNegative", "Option", "Param", "PerInput",
    "PerInputParam", "Same", "Share", "Space", "Weight", "merge_method",
]  # fmt: skip

Space = Literal["weight", "delta", "param", "same"]
Measured = Any
PerInput = Sequence[float]
if TYPE_CHECKING:
    PerInputParam = Sequence[Param]
    Each = Any  # a Sequence[float], whose default may be one number
    EachShare = Any
else:

    class PerInputParam:
        """One tensor of numbers per input of the variadic parameter."""


@dataclass(frozen=True)
class Between:
    """The closed range in which an option's numbers lie."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"between {self.low:g} and {self.high:g}" if self.high < float("inf") else f"at {self.low:g} or above"


Share = Annotated[float, Between(0.0, 1.0)]
NonNegative = Annotated[float, Between(0.0, float("inf"))]
if not TYPE_CHECKING:

    class Each:
        """One number per input of the variadic parameter, or one for all of them."""

    EachShare = Annotated[Each, Between(0.0, 1.0)]


class Masks(Protocol):
    """Random masks, the same for one seed, tensor and element on every machine and in every tiling."""

    def keep(self, index: int, probability: float | Tensor, like: Tensor) -> Tensor:
        """A bool tile for input number `index`: True with `probability`, independent for every element.

        `probability` is one number, or a tensor of `like`'s shape with one per element.
        """
        ...


@dataclass(frozen=True)
class Input:
    """A tensor parameter. `variadic` takes one or more."""

    name: str
    space: Space
    variadic: bool = False


@dataclass(frozen=True)
class Option:
    """A number or word that a recipe may set.

    `per_input`: one for each variadic input; `spreads`: one number may stand for all of them. `tensor`: a node in
    param space may be given (kind float), or must be (kind tensor). `between` is the range of its numbers.
    """

    name: str
    kind: Literal["float", "int", "bool", "word", "tensor"]
    default: Any
    per_input: bool = False
    spreads: bool = False
    words: tuple[str, ...] = ()
    tensor: bool = False
    between: Between | None = None

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True, repr=False)
class Method:
    """A registered method: the function, what its signature says, and its traits (see merge_method)."""

    name: str
    function: Callable[..., Any]
    inputs: tuple[Input, ...]
    options: Mapping[str, Option]
    returns: Space
    statistics: Mapping[str, Statistic] = field(default_factory=dict[str, Any])
    random: str | None = None
    rows: bool = False
    whole: bool = False
    workspace: Callable[[int, int, int], float] | None = None
    propagates: bool = False
    skips_zero: bool = False
    paper: str = ""

    @property
    def summary(self) -> str:
        """The first line of the method's documentation."""
        return (inspect.getdoc(self.function) or "").split("\n")[0]

    def __repr__(self) -> str:
        inputs = ", ".join(("*" if i.variadic else "") + i.name for i in self.inputs)
        return f"<merge method {self.name}({', '.join([inputs, *self.options])}) -> {self.returns}>"

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Build a recipe node: `fs.weighted_sum(a, b, alpha=0.5)`."""
        return _node_builder[-1](self, inputs, options)


# Methods know nothing of recipes, which stand above them; recipes say here how a call becomes a node.
_node_builder: list[Callable[[Method, Sequence[Any], Mapping[str, Any]], Any]] = []


def build_nodes_with(builder: Callable[[Method, Sequence[Any], Mapping[str, Any]], Any]) -> None:
    """Say what calling a method gives."""
    _node_builder.append(builder)


_SPACES: dict[Any, Space] = {Weight: "weight", Delta: "delta", Param: "param", Same: "same"}


@overload
def merge_method(function: Callable[..., Any], /) -> Method: ...
@overload
def merge_method(
    *,
    statistics: Mapping[str, Statistic] | None = None,
    rows: bool = False,
    whole: bool = False,
    workspace: Callable[[int, int, int], float] | None = None,
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
    rows: bool = False,
    whole: bool = False,
    workspace: Callable[[int, int, int], float] | None = None,
    propagates: bool = False,
    skips_zero: bool = False,
    paper: str = "",
    name: str | None = None,
) -> Method | Callable[[Callable[..., Any]], Method]:
    """Make a method of a function and register it under its name.

    `statistics` maps keyword-only parameters to what is measured over whole tensors beforehand, in their order; a later
    one may use the values of earlier ones. `rows` and `whole` choose the unit that the method sees; `workspace(rows,
    columns, inputs)` gives the float32 elements that a whole-tensor method holds at its peak beside its inputs (result
    included; default: one matrix more than it has inputs). `propagates` says that a NaN in any input comes out (so that
    inputs need no check of their own), `skips_zero` that inputs of weight zero need not be read; `paper` is the source.

    Raises UsageError where the signature cannot be one.
    """

    def declare(f: Callable[..., Any]) -> Method:
        if rows and whole:
            raise UsageError("method.signature", f"method `{name or f.__name__}` sees rows or whole tensors, not both", fix="leave one out")
        from fluxsmith.methods import register

        traits = {
            "rows": rows, "whole": whole, "workspace": workspace, "propagates": propagates, "skips_zero": skips_zero, "paper": paper
        }  # fmt: skip
        method = _read_signature(f, dict(statistics or {}), name or f.__name__, traits)
        register(method)
        return method

    return declare if function is None else declare(function)


def _read_signature(function: Callable[..., Any], statistics: Mapping[str, Statistic], name: str, traits: Mapping[str, Any]) -> Method:
    hints = get_type_hints(function, include_extras=True)
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
        raise UsageError(
            "method.signature", f"method `{name}` needs tensor parameters and a return annotation (Weight, Delta, Param or Same)"
        )
    return Method(name, function, tuple(inputs), options, returns, statistics, random, **traits)


def _tensor_input(method: str, parameter: inspect.Parameter, hint: Any) -> Input:
    space = _SPACES.get(hint)
    if space is None:
        raise UsageError(
            "method.signature",
            f"parameter `{parameter.name}` of method `{method}` must be annotated Weight, Delta, Param or Same",
            fix=f"write `{parameter.name}: fs.Weight`; options come after a `*`",
        )
    return Input(parameter.name, space, parameter.kind is inspect.Parameter.VAR_POSITIONAL)


def _option(method: str, parameter: inspect.Parameter, hint: Any) -> Option:
    kinds: dict[Any, Literal["float", "int", "bool"]] = {float: "float", int: "int", bool: "bool"}
    name, default = parameter.name, parameter.default
    between = next((mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Between)), None)
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if hint in kinds:
        return Option(name, kinds[hint], default, between=between)
    if get_origin(hint) is Literal:
        return Option(name, "word", default, words=tuple(map(str, get_args(hint))))
    if hint == PerInput:
        return Option(name, "float", default, per_input=True)
    if hint is Each:
        return Option(name, "float", default, per_input=True, spreads=True, between=between)
    if hint is PerInputParam:
        return Option(name, "tensor", default, per_input=True, tensor=True)
    if set(get_args(hint)) == {float, Param}:
        return Option(name, "float", default, tensor=True)
    raise UsageError(
        "method.signature",
        f"option `{name}` of method `{method}` must be annotated float, int, bool, Literal[...], Share, PerInput, Each,"
        " EachShare, PerInputParam or float | Param",
    )
