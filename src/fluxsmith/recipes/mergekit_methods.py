"""mergekit's methods as fluxsmith's: which method each one is, and what its parameters are called here.

    Parameter("weights", per_input=True)          `weight` of mergekit is one of `weights` here
    Parameter("rescale", False, words=RESCALE)    a switch there is a word here
    Parameter(None, False)                        changes how mergekit runs, not what comes out: read, and not used
    Parameter(None, False, only=False)            has no meaning here unless it has this value

Defaults are mergekit's (0.1.5), so that a file without a parameter gives what it gives there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["FOREIGN_METHODS", "REQUIRED", "ForeignMethod", "Parameter"]

REQUIRED = object()
_ANY = object()


@dataclass(frozen=True)
class Parameter:
    """One parameter of mergekit. `factor` is ours divided by theirs; `default` is REQUIRED where there is none."""

    ours: str | None
    default: Any = REQUIRED
    per_input: bool = False
    factor: float = 1.0
    words: Mapping[Any, Any] | None = None
    only: Any = _ANY

    @property
    def restricted(self) -> bool:
        """Whether any other value than `only` has no meaning here."""
        return self.only is not _ANY

    @property
    def kind(self) -> Literal["switch", "number"]:
        """Whether it is a bool or a number."""
        return "switch" if isinstance(self.default, bool) else "number"


@dataclass(frozen=True)
class ForeignMethod:
    """A method of mergekit: ours, its parameters, and what its `base_model` is.

    first    the first input of our method
    input    one more input
    origin   where there is one, the differences from it are merged and added to it
    pair     the first of exactly two
    """

    ours: str
    base: Literal["first", "input", "origin", "pair"]
    parameters: Mapping[str, Parameter] = field(default_factory=dict[str, Parameter])


_WEIGHT = {"weight": Parameter("weights", per_input=True)}
_RESCALE = {True: "l1", False: "none"}
_UNUSED = {"int8_mask": Parameter(None, default=False)}
_NO_RESCALE = {"rescale": Parameter(None, default=False, only=False)}


def _deltas(ours: str, *, normalize: bool, **more: Parameter) -> ForeignMethod:
    """One of the methods that add weighted, thinned differences to a base."""
    density = {"density": Parameter("density", 1.0, per_input=True)}
    shared = {"normalize": Parameter("normalize", normalize), "lambda": Parameter("scale", 1.0)}
    return ForeignMethod(ours, "first", _WEIGHT | density | shared | _UNUSED | _NO_RESCALE | more)


def _random(ours: str, *, normalize: bool, **more: Parameter) -> ForeignMethod:
    return _deltas(ours, normalize=normalize, rescale=Parameter("rescale", default=True, words=_RESCALE), **more)


_GAMMA = Parameter("gamma", 0.01, per_input=True)
_EPSILON = Parameter("epsilon", 0.15, per_input=True, factor=2.0)  # half a window there, a whole one here

FOREIGN_METHODS: dict[str, ForeignMethod] = {
    "linear": ForeignMethod("linear", "input", _WEIGHT | {"normalize": Parameter("normalize", default=True)}),
    # Its factors are applied to the tensors themselves, not to their directions: that is NuSLERP here.
    "slerp": ForeignMethod("nuslerp", "pair", {"t": Parameter("alpha")}),
    "nuslerp": ForeignMethod(
        "nuslerp", "origin",
        _WEIGHT | {"nuslerp_flatten": Parameter(None, default=True), "nuslerp_row_wise": Parameter(None, default=False)},
    ),
    "multislerp": ForeignMethod(
        "multislerp", "origin", _WEIGHT | {"normalize_weights": Parameter("normalize", default=True), "eps": Parameter(None, 1e-8)}
    ),
    "karcher": ForeignMethod("karcher", "input", {"max_iter": Parameter("iterations", 10), "tol": Parameter("tolerance", 1e-5)}),
    "task_arithmetic": _deltas("task_arithmetic", normalize=False, density=Parameter(None, 1.0, per_input=True, only=1.0)),
    "ties": _deltas("ties", normalize=True),
    "dare_linear": _random("dare_linear", normalize=False),
    "dare_ties": _random("dare_ties", normalize=False),
    "della_linear": _random("della_linear", normalize=False, epsilon=_EPSILON),
    "della": _random("della", normalize=True, epsilon=_EPSILON),
    "breadcrumbs": _deltas("breadcrumbs", normalize=False, gamma=_GAMMA),
    "breadcrumbs_ties": _deltas("breadcrumbs_ties", normalize=False, gamma=_GAMMA),
    "model_stock": ForeignMethod(
        "model_stock", "first", {"filter_wise": Parameter("over", default=False, words={True: "rows", False: "tensor"})}
    ),
    "sce": ForeignMethod("sce", "first", _UNUSED | {"select_topk": Parameter("select_topk", 1.0)}),
    "ram": ForeignMethod("ram", "first", {"epsilon": Parameter("epsilon", 1e-5)}),
    "ramplus_tl": ForeignMethod(
        "ram_plus", "first", {"epsilon": Parameter("epsilon", 1e-5), "r": Parameter("r", 0.1), "alpha": Parameter("alpha", 0.2)}
    ),
    "arcee_fusion": ForeignMethod("arcee_fusion", "pair"),
    "nearswap": ForeignMethod("nearswap", "pair", {"t": Parameter("t")}),
    "passthrough": ForeignMethod("passthrough", "input", {"scale": Parameter("scale", 1.0, per_input=True)}),
}  # fmt: skip
