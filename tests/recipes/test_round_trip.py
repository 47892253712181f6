"""Random small expressions, with nodes used twice: as YAML and as formulas they come back as they were."""

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import fluxsmith as fs
from fluxsmith.recipes.expressions import Call, Combination, Component, Expression, Fallback, Literal, Model
from fluxsmith.recipes.formula import parse_formula, show
from fluxsmith.recipes.loading import recipe_from_text
from fluxsmith.recipes.recipe import Recipe
from fluxsmith.recipes.saving import recipe_to_dict, recipe_to_text
from fluxsmith.recipes.schedules import Number, Ramp, Schedule
from fluxsmith.recipes.selectors import Selector

NUMBERS = st.integers(0, 64).map(lambda n: n / 64)
RAMPS = st.lists(NUMBERS, min_size=2, max_size=3).map(lambda points: Ramp(tuple(points)))
SELECTORS = st.sampled_from(["double.0", "single", "img_attn", "*.img_mlp.*", "re:^final", "q"]).map(Selector)


@st.composite
def schedules(draw: Any) -> Schedule:
    entries = draw(st.dictionaries(SELECTORS, NUMBERS | RAMPS, min_size=1, max_size=3))
    return Schedule(draw(NUMBERS | RAMPS | st.none()), tuple(entries.items()))


def numbers(plain: bool) -> st.SearchStrategy[Number]:
    return NUMBERS if plain else NUMBERS | RAMPS | schedules()


@st.composite
def graphs(draw: Any, *, plain: bool) -> Expression:
    """A weight over three models; `plain` ones have nothing that formulas cannot say."""
    known: list[Expression] = [fs.model(f"{name}.safetensors", name=name) for name in "abc"]
    pick: Callable[[], Expression] = lambda: draw(st.sampled_from(known))  # noqa: E731
    number: Callable[[], Number] = lambda: draw(numbers(plain))  # noqa: E731
    makers: list[Callable[[], Expression]] = [
        lambda: fs.linear(pick(), pick(), weights=[draw(NUMBERS), number()]),
        lambda: fs.weighted_sum(pick(), pick(), alpha=number()),
        lambda: fs.weighted_sum(pick(), pick(), alpha=fs.train_difference_mask(pick(), pick(), pick(), alpha=draw(NUMBERS))),
        lambda: fs.weighted_sum(pick(), pick(), alpha=fs.literal(number())),
        lambda: fs.ties(pick(), pick(), pick(), density=[draw(NUMBERS), number()], sign="count", normalize=draw(st.booleans())),
        lambda: pick() + (pick() - pick()) * draw(NUMBERS),
        lambda: pick() | pick(),
        lambda: fs.component(pick(), "transformer", "vae"),
        lambda: fs.omit(pick(), "t5"),
    ]
    for _ in range(draw(st.integers(1, 6))):
        known.append(draw(st.sampled_from(makers))())
    return known[-1]


def picture(root: Expression) -> Any:
    """A node as plain data; nodes that are used twice are told by the number of their first use."""
    seen: dict[int, int] = {}

    def of(node: Any) -> Any:
        if isinstance(node, tuple):
            return tuple(map(of, node))  # pyright: ignore[reportUnknownArgumentType]
        if not isinstance(node, Expression):
            return node
        if isinstance(node, Combination) and len(node.terms) == 1 and node.terms[0][1] == 1:
            return of(node.terms[0][0])
        if isinstance(node, Model):
            return node.name
        if id(node) in seen:
            return ("again", seen[id(node)])
        seen[id(node)] = len(seen)
        if isinstance(node, Literal):
            return ("literal", node.value)
        if isinstance(node, Combination):
            return ("sum", tuple((of(term), factor) for term, factor in node.terms))
        if isinstance(node, Fallback):
            return ("fallback", of(node.first), of(node.second))
        if isinstance(node, Component):
            return ("component", of(node.node), node.names, node.omitted)
        assert isinstance(node, Call)
        return (node.method.name, of(node.inputs), tuple((key, of(value)) for key, value in sorted(node.options.items())))

    return of(root)


@settings(max_examples=60, deadline=None)
@given(graphs(plain=False))
def test_yaml(root: Expression) -> None:
    recipe = Recipe(root, seed=3, missing="base")
    again = recipe_from_text(recipe_to_text(recipe), "text")
    assert picture(again.root) == picture(root)
    assert recipe_to_dict(again) == recipe_to_dict(recipe)


@settings(max_examples=60, deadline=None)
@given(graphs(plain=True))
def test_formulas(root: Expression) -> None:
    """A formula has no names for parts, so nodes that are used twice are written twice."""
    text = show(root)
    again = parse_formula(text, {node.name: node for node in root.models()})
    assert show(again) == text
