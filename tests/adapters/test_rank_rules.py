"""How many singular values are kept: the smallest number that satisfies the rule, also where the spectrum is known in part."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxsmith.adapters.extracting.rank import RankRule, fits_dense
from fluxsmith.errors import UsageError

HALVING = [8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.0625]


def whole(rule: RankRule, spectrum: list[float]) -> int | None:
    return rule.choose(spectrum, len(spectrum), sum(s * s for s in spectrum))


def test_the_spectrum_of_the_reference() -> None:
    # kohya answers 5 and 3 for the cumulative and the Frobenius rule, LyCORIS 3 for the cumulative one
    assert whole(RankRule("cumulative", 0.9), HALVING) == 4
    assert whole(RankRule("energy", 0.9), HALVING) == 2
    assert whole(RankRule("threshold", 0.5), HALVING) == 4
    assert whole(RankRule("ratio", 0.25), HALVING) == 2
    assert whole(RankRule("rank", 3), HALVING) == 3
    assert whole(RankRule("rank", 99), HALVING) == 8


def test_rounding_up_stops_at_the_matrix() -> None:
    assert whole(RankRule("energy", 0.9, multiple=4), HALVING) == 4
    assert whole(RankRule("rank", 5, multiple=6), HALVING) == 6
    assert whole(RankRule("rank", 7, multiple=16), HALVING) == 8


def test_one_is_always_kept() -> None:
    assert whole(RankRule("threshold", 100.0), HALVING) == 1
    assert whole(RankRule("ratio", 1.0), HALVING) == 1


def test_all_of_the_energy_is_the_number_of_values_above_zero() -> None:
    assert whole(RankRule("energy", 1.0), [3.0, 2.0, 1.0, 0.0, 0.0]) == 3
    assert whole(RankRule("cumulative", 1.0), [3.0, 2.0, 1.0, 0.0, 0.0]) == 3


@pytest.mark.parametrize("kind", ["threshold", "ratio", "cumulative", "energy"])
@given(st.lists(st.floats(1e-3, 10), min_size=2, max_size=12), st.floats(0.05, 0.99), st.data())
def test_an_answer_from_a_part_of_the_spectrum_is_that_of_the_whole(
    kind: str, values: list[float], value: float, data: st.DataObject
) -> None:
    spectrum = sorted(values, reverse=True)
    rule = RankRule(kind, value)  # pyright: ignore[reportArgumentType]
    known = data.draw(st.integers(0, len(spectrum)))
    found = rule.choose(spectrum[:known], len(spectrum), sum(s * s for s in spectrum))
    assert found is None or found == whole(rule, spectrum)
    if known == len(spectrum):
        assert found is not None


@given(st.lists(st.floats(1e-3, 10), min_size=1, max_size=12), st.floats(0.05, 1))
def test_the_energy_rule_is_the_smallest_that_satisfies(values: list[float], share: float) -> None:
    spectrum = sorted(values, reverse=True)
    squares = [s * s for s in spectrum]
    found = whole(RankRule("energy", share), spectrum)
    assert found is not None
    assert math.sqrt(sum(squares[:found]) / sum(squares)) >= share * (1 - 1e-9)
    assert found == 1 or math.sqrt(sum(squares[: found - 1]) / sum(squares)) < share


@pytest.mark.parametrize(
    ("kind", "value"), [("rank", 0), ("rank", 2.5), ("energy", 0), ("energy", 1.1), ("threshold", -1), ("ratio", math.nan)]
)
def test_values_that_a_rule_cannot_have_are_refused(kind: str, value: float) -> None:
    with pytest.raises(UsageError) as caught:
        RankRule(kind, value)  # pyright: ignore[reportArgumentType]
    assert f"--{kind}" in caught.value.message


def test_factors_are_never_larger_than_the_matrix() -> None:
    assert not fits_dense(4, 10, 10)
    assert fits_dense(5, 10, 10)
