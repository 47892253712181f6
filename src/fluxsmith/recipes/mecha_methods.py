"""sd-mecha's methods as fluxsmith's expressions: one function per method, with sd-mecha's names, order and defaults.

    METHODS["weighted_sum"](a, b, alpha=0.5)

Models are expressions; numbers are numbers, schedules (sd-mecha: one per key) or expressions in param space. Methods on
deltas there are methods around a base here: the base is found in the deltas and taken off the result again. What
only numbers can be there (seeds of one tensor, sizes of caches) and what has no meaning here is in REFUSED.
"""

from collections.abc import Callable, Sequence
from typing import Any

from fluxsmith.errors import RecipeError
from fluxsmith.methods import find_method
from fluxsmith.recipes.calls import call
from fluxsmith.recipes.expressions import Combination, Expression, Literal, component, fallback, omit
from fluxsmith.recipes.schedules import Number, Schedule

__all__ = ["COMPONENTS", "METHODS", "REFUSED"]

Value = Number | Expression
Builder = Callable[..., Any]

#: sd-mecha's components and ours; its `diffuser` has another name in every family.
COMPONENTS = {"t5xxl": "t5", "clip_l": "clip_l", "clip_g": "clip_g", "vae": "vae"}

METHODS: dict[str, Builder] = {}

#: Methods that are not read, and what to do instead.
REFUSED = {
    "stack": "it makes a tensor of another shape, which no model has",
    "get_dtype": "dtypes are options of the output: --dtype",
    "get_device": "the device is an option of the run: --device",
    "get_rank_from_ratio": "give truncate_rank a number",
    "exchange_ema": "convert the checkpoint with the tool that wrote its EMA",
    "omit_non_finite": "NaN and infinite values are an error here, unless --allow-nonfinite is given",
    "balance_attention": "it is for SDXL's U-Net alone",
    "rebasin": "it is for SDXL there; for FLUX.1 run `fluxsmith rebasin` first and name its result",
    "randperm": "a random permutation of units is no merge",
    "extract_kohya_lora": "adapters are written by `fluxsmith extract`",
    "extract_kohya_lokr": "adapters are written by `fluxsmith extract`",
    "extract_lycoris_lora": "adapters are written by `fluxsmith extract`",
    "extract_lycoris_lokr": "adapters are written by `fluxsmith extract`",
}


def _reads(builder: Builder) -> Builder:
    METHODS[builder.__name__] = builder
    return builder


# Arithmetic


@_reads
def weighted_sum(a: Expression, b: Expression, alpha: Value = 0.5) -> Expression:
    if a.space == "weight":
        return _ours("weighted_sum", [a, b], alpha=alpha)
    return simple(a + _scaled(simple(b - a), alpha))


@_reads
def n_average(*models: Expression) -> Expression:
    if models[0].space == "weight":
        return _ours("linear", models)
    return simple(sum((m * (1 / len(models)) for m in models[1:]), models[0] * (1 / len(models))))


@_reads
def add_difference(a: Expression, b: Expression, alpha: Value = 1.0) -> Expression:
    models = _difference(b) if a.space == "weight" else None
    if models is not None and models[1] is a:
        return models[0] if alpha == 1 else _ours("weighted_sum", [a, models[0]], alpha=alpha)
    if models is not None:
        return _ours("add_difference", [a, *models], alpha=alpha)
    if isinstance(alpha, (int, float)):
        return simple(a + b * alpha)
    if a.space == "weight":
        return _ours("weighted_sum", [a, simple(a + b)], alpha=alpha)
    return simple(a + _scaled(b, alpha))


@_reads
def subtract(a: Expression, b: Expression) -> Expression:
    return simple(a - b)


@_reads
def scale(a: Expression, alpha: Value = 1.0) -> Expression:
    return _scaled(a, alpha)


@_reads
def slerp(a: Expression, b: Expression, alpha: Value = 0.5) -> Expression:
    return _ours("slerp", [a, b], alpha=alpha)


@_reads
def perpendicular_component(a: Expression, b: Expression) -> Expression:
    base = _base_of([a])
    first, second = simple(base + a), simple(base + b)
    return simple(_ours("perpendicular", [first, second, base]) - first)


@_reads
def geometric_sum(a: Expression, b: Expression, alpha: Value = 0.5) -> Expression:
    return _ours("geometric_sum", [a, b], alpha=alpha)


@_reads
def multiply_quotient(a: Expression, b: Expression, c: Expression, alpha: Value = 1.0) -> Expression:
    return _ours("multiply_quotient", [a, b, c], alpha=alpha)


@_reads
def add_cosine_a(a: Expression, b: Expression, alpha: Value = 1.0) -> Expression:
    return _ours("add_cosine_a", [a, b], alpha=alpha)


@_reads
def add_cosine_b(a: Expression, b: Expression, alpha: Value = 1.0) -> Expression:
    return _ours("add_cosine_b", [a, b], alpha=alpha)


@_reads
def clamp(a: Expression, *bounds: Expression, stiffness: Value = 0.0) -> Expression:
    return _ours("clamp", [a, *bounds], stiffness=stiffness)


@_reads
def crossover(a: Expression, b: Expression, alpha: Value = 0.5, tilt: Value = 0.0) -> Expression:
    return _ours("crossover", [a, b], alpha=alpha, tilt=tilt)


@_reads
def tensor_sum(a: Expression, b: Expression, width: Value = 0.5, offset: Value = 0.0) -> Expression:
    return _ours("tensor_sum", [a, b], width=width, offset=offset)


@_reads
def top_k_tensor_sum(a: Expression, b: Expression, width: Value = 1.0, offset: Value = 0.0) -> Expression:
    return _ours("top_k_tensor_sum", [a, b], width=width, offset=offset)


# Masks


@_reads
def train_difference_mask(a: Expression, b: Expression, c: Expression, alpha: Value = 1.0) -> Expression:
    return _ours("train_difference_mask", [a, b, c], alpha=alpha)


@_reads
def add_opposite_mask(a: Expression, b: Expression, c: Expression, alpha: Value = 1.0) -> Expression:
    return _ours("add_opposite_mask", [a, b, c], alpha=alpha)


@_reads
def add_strict_opposite_mask(a: Expression, b: Expression, c: Expression, alpha: Value = 1.0) -> Expression:
    return _ours("add_strict_opposite_mask", [a, b, c], alpha=alpha)


# Deltas around a base. sd-mecha elects signs by their number unless `vote_sgn` is true.


@_reads
def ties_sum(*models: Expression, k: Value = 1.0, vote_sgn: bool = False) -> Expression:
    return _around_base("ties", models, density=k, **_votes(vote_sgn))


@_reads
def ties_sum_extended(
    *models: Expression, k: Value = 0.2, vote_sgn: bool = False, apply_stock: bool = False, apply_median: bool = False,
    cos_eps: Value = 1e-6, eps: Value = 1e-6, maxiter: Value = 100, ftol: Value = 1e-20,
) -> Expression:  # fmt: skip
    if apply_median:
        return _around_base("ties_median", models, density=k, **_votes(vote_sgn), iterations=maxiter, tolerance=ftol)
    if apply_stock:  # the word says the reverse of what it does there: true leaves Model Stock out
        return _around_base("ties", models, density=k, **_votes(vote_sgn))
    return _around_base("ties_stock", models, density=k, **_votes(vote_sgn), over="rows", pairs="consecutive")


@_reads
def ties_sum_with_dropout(
    *deltas: Expression, probability: Value = 0.9, della_eps: Value = 0.0, rescale: bool = True, k: Value = 0.2, vote_sgn: bool = False,
    apply_stock: bool = False, cos_eps: Value = 1e-6, apply_median: bool = False, eps: Value = 1e-6, maxiter: Value = 100,
    ftol: Value = 1e-20, seed: Value | None = None,
) -> Expression:  # fmt: skip
    base = _base_of(deltas)
    thinned: list[Expression] = []
    for i, delta in enumerate(deltas):  # as input i + 1 of its own call: masks are keyed by the place of an input
        inputs = [base] * (i + 1) + [simple(base + delta)]
        options: dict[str, Any] = {"density": _rest(probability), "rescale": "none"}
        if della_eps:
            thinned.append(_ours("della_linear", inputs, **options, epsilon=della_eps, over="tensor"))
        else:
            thinned.append(_ours("dare_linear", inputs, **options))
    found = ties_sum_extended(
        *(thin - base for thin in thinned), k=k, vote_sgn=vote_sgn, apply_stock=apply_stock, apply_median=apply_median, maxiter=maxiter,
        ftol=ftol,
    )  # fmt: skip
    return simple(found * (1 / _rest(probability))) if rescale else found


@_reads
def dropout(
    *deltas: Expression, probability: Value = 0.9, rescale: Value = 1.0, overlap: Value = 1.0, overlap_emphasis: Value = 0.0,
    seed: Value | None = None,
) -> Expression:  # fmt: skip
    if rescale not in (0, 1):
        raise RecipeError("recipe.mecha-option", "what is kept is divided by its whole share (rescale=1) or not at all (0)")
    options = {"density": _rest(probability), "rescale": "density" if rescale else "none", "scale": 1.0}
    if overlap % 2 == 1 if isinstance(overlap, (int, float)) else False:
        return _around_base("dropout", deltas, **options)
    return _around_base("dropout", deltas, **options, draw="sets", overlap=overlap, overlap_emphasis=overlap_emphasis)


@_reads
def model_stock(*deltas: Expression, cos_eps: Value = 1e-6) -> Expression:
    return _around_base("model_stock", deltas, over="rows", pairs="consecutive")


@_reads
def geometric_median(*models: Expression, eps: Value = 1e-6, maxiter: Value = 100, ftol: Value = 1e-20) -> Expression:
    return _ours("geometric_median", models, iterations=maxiter, tolerance=ftol)


# Whole matrices


@_reads
def truncate_rank(
    a: Expression, rank: Value = 8, use_approximate_basis: bool = True, approximate_basis_iters: Value = 2,
    approximate_basis_seed: Value | None = None,
) -> Expression:  # fmt: skip
    if use_approximate_basis:
        return _ours("truncate_rank", [a], rank=rank, algorithm="sketch", passes=approximate_basis_iters)
    return _ours("truncate_rank", [a], rank=rank)


@_reads
def truncate_kronecker(
    a: Expression, kronecker_ratio: Value = 0.5, use_approximate_basis: bool = True, approximate_basis_iters: Value = 2,
    approximate_basis_seed: Value | None = None,
) -> Expression:  # fmt: skip
    return _ours("truncate_kronecker", [a], ratio=kronecker_ratio)


@_reads
def rotate(
    a: Expression, b: Expression, alignment: Value = 1.0, alpha: Value = 0.0, centralization: Value = 1.0, stiefel_eps: Value = 1e-8,
    stiefel_max_iters: Value = 100,
) -> Expression:  # fmt: skip
    return _ours("rotate", [a, b], alignment=alignment, alpha=alpha, centering=centralization)


# Parts of models


@_reads
def pick_component(a: Expression, component: str) -> Expression:
    return _part(a, component, omitted=False)


@_reads
def omit_component(a: Expression, component: str) -> Expression:
    return _part(a, component, omitted=True)


def _fallback(a: Value, default: Value) -> Value:
    if isinstance(a, Expression):
        return fallback(a, default) if isinstance(default, Expression) else a
    if not isinstance(a, Schedule) or a.default is not None:
        return a
    if not isinstance(default, (int, float)):
        raise RecipeError("recipe.mecha-option", "numbers per key fall back to one number", fix="write all keys into one dict")
    return Schedule(float(default), a.entries, a.at)


METHODS["fallback"] = _fallback


def simple(node: Expression) -> Expression:
    """A sum without terms of coefficient zero; one term of coefficient one alone is that term."""
    if not isinstance(node, Combination):
        return node
    terms = tuple((term, factor) for term, factor in node.terms if factor != 0)
    if len(terms) == 1 and terms[0][1] == 1:
        return terms[0][0]
    return Combination(terms) if terms else node


def _ours(name: str, inputs: Sequence[Expression], **options: Any) -> Expression:
    return call(find_method(name), inputs, options)


def _scaled(a: Expression, alpha: Value) -> Expression:
    if isinstance(alpha, (int, float)):
        return simple(a * alpha)
    if a.space == "param":
        return _ours("multiply_masks", [a, alpha if isinstance(alpha, Expression) else Literal(alpha)])
    return _ours("scale", [a], alpha=alpha)


def _votes(vote_sgn: bool) -> dict[str, str]:
    return {"sign": "magnitude" if vote_sgn else "count", "undecided": "none"}


def _rest(probability: Value) -> float:
    """The share that is kept where `probability` is the share that is dropped."""
    if not isinstance(probability, (int, float)):
        raise RecipeError("recipe.mecha-option", "the share that is dropped is one number for all tensors here")
    return 1 - probability


def _around_base(name: str, deltas: Sequence[Expression], **options: Any) -> Expression:
    """method(base, base + delta...) - base."""
    base = _base_of(deltas)
    return simple(_ours(name, [base, *(simple(base + delta) for delta in deltas)], **options) - base)


def _difference(node: Expression) -> tuple[Expression, Expression] | None:
    """The two weights of a difference that is one of weights."""
    if not isinstance(node, Combination) or len(node.terms) != 2 or any(term.space != "weight" for term, _ in node.terms):
        return None
    (first, one), (second, other) = node.terms
    return (first, second) if (one, other) == (1, -1) else (second, first) if (one, other) == (-1, 1) else None


def _base_of(deltas: Sequence[Expression]) -> Expression:
    """What the deltas are differences from: a weight with coefficient -1 in the first that has one, else any weight."""
    terms = [(term, factor) for d in deltas if isinstance(d, Combination) for term, factor in d.terms if term.space == "weight"]
    for wanted in (lambda factor: factor == -1, lambda _: True):  # pyright: ignore[reportUnknownLambdaType]
        for term, factor in terms:
            if wanted(factor):
                return term
    raise RecipeError(
        "recipe.no-base",
        "these deltas are differences from no model of the recipe",
        fix='subtract the base in the recipe: merge "subtract" &MODEL &BASE',
    )


def _part(a: Expression, name: str, *, omitted: bool) -> Expression:
    ours = [COMPONENTS[name]] if name in COMPONENTS else ["transformer", "unet"] if name == "diffuser" else []
    if not ours:
        raise RecipeError("recipe.mecha-option", f"`{name}` is no component here", fix=f"known: diffuser, {', '.join(COMPONENTS)}")
    return omit(a, *ours) if omitted else component(a, *ours)
