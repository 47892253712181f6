"""Statistics of whole tensors: the k-th magnitude is exact whatever the sample said, and random masks are keyed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxsmith.methods.masks import CounterMasks, uniform_u32
from fluxsmith.methods.statistics import _Search  # pyright: ignore[reportPrivateUsage]


def search(values: torch.Tensor, kept: int, *, sample: torch.Tensor | None = None, cap: int | None = None) -> tuple[float, int]:
    """The k-th largest magnitude, streamed in pieces of 1000, and the number of passes."""
    found = _Search(values.numel(), kept)
    if cap is not None:
        found.CAP = cap
    if sample is not None:
        found.bracket_from(sample)
    for passes in range(1, 5):
        for piece in values.split(1000):
            found.visit(piece)
        if not found.finish_pass():
            assert found.result is not None
            return found.result, passes
    raise AssertionError("no end")


def exact(values: torch.Tensor, kept: int) -> float:
    return float(np.sort(values.abs().numpy())[::-1][kept - 1])


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["normal", "many zeros", "few values", "constant"])
def test_kth_magnitude_is_exact(share: float, kind: str) -> None:
    generator = torch.Generator().manual_seed(7)
    values = torch.randn(50_000, generator=generator)
    if kind == "many zeros":
        values[torch.rand(50_000, generator=generator) < 0.6] = 0
    elif kind == "few values":
        values = (values * 2).round() / 8
    elif kind == "constant":
        values = torch.full((50_000,), -0.25)
    kept = int(share * 50_000)
    truth = exact(values, kept)
    assert search(values, kept)[0] == truth
    good = values[::50].abs()
    assert search(values, kept, sample=good, cap=8000)[0] == truth
    misleading = good + 3  # a sample that brackets nothing: three passes, the same value
    assert search(values, kept, sample=misleading, cap=8000) == (truth, 3)


def test_a_good_sample_needs_one_pass() -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(1))
    assert search(values, 60_000, sample=values[::40].abs(), cap=100_000) == (exact(values, 60_000), 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=300), st.data())
def test_kth_magnitude_of_anything(numbers: list[float], data: st.DataObject) -> None:
    values = torch.tensor(numbers, dtype=torch.float32)
    kept = data.draw(st.integers(1, len(numbers)))
    truth = exact(values, kept)
    # Where all are kept the threshold is 0: nothing needs to be measured.
    assert search(values, kept, cap=0)[0] == (0.0 if kept == len(numbers) else truth)


def test_masks_are_a_function_of_key_and_element() -> None:
    whole = np.asarray(uniform_u32(b"k", 0, 1000))
    for start, count in ((0, 10), (3, 50), (8, 8), (997, 3)):
        assert np.array_equal(np.asarray(uniform_u32(b"k", start, count)), whole[start : start + count])
    like = torch.empty(4096)
    masks = [CounterMasks(seed, name, stream, 0).keep(index, 0.5, like) for seed, name, stream, index in
             ((0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1))]  # fmt: skip
    for i, one in enumerate(masks):
        for other in masks[i + 1 :]:
            assert 0.4 < (one == other).float().mean() < 0.6


def test_masks_have_their_share_and_a_known_value() -> None:
    mask = CounterMasks(0, "x", 0, 0).keep(0, 0.3, torch.empty(1 << 20))
    assert abs(mask.float().mean() - 0.3) < 0.002
    assert CounterMasks(0, "x", 0, 0).keep(0, 1.0, torch.empty(5)).all()
    # A golden value: outputs of random methods must not change between versions.
    assert np.asarray(uniform_u32(b"golden", 5, 3)).tolist() == GOLDEN


GOLDEN = [749034013, 9529608, 4264929585]
