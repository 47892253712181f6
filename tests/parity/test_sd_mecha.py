"""sd-mecha as an oracle: same inputs, arithmetic in float32, output rounded to bf16."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fluxsmith as fs
from fluxsmith.recipes.expressions import Expression
from support.tiny_flux import TinyCheckpoints, tensors_of

from .agreement import Silent, agreement, merged

sd_mecha: Any = pytest.importorskip("sd_mecha", reason="sd-mecha is an oracle and is not installed (pip install sd-mecha)")

PREFIX = "model.diffusion_model."
Peer = Callable[..., dict[str, Tensor]]


@pytest.fixture
def peer(tmp_path: Path) -> Peer:
    """Runs a recipe of sd-mecha; names without the prefix that it always writes."""

    def run(recipe: Any, **options: Any) -> dict[str, Tensor]:
        out = tmp_path / "sd-mecha.safetensors"
        settings = {"merge_dtype": torch.float32, "output_dtype": torch.bfloat16, "threads": 1, "tqdm": Silent} | options
        sd_mecha.merge(recipe, output=out, **settings)
        return {name.removeprefix(PREFIX): tensor for name, tensor in tensors_of(out).items()}

    return run


def theirs(tiny: TinyCheckpoints) -> tuple[Any, Any, Any]:
    a, b, c = (sd_mecha.model(path) for path in (tiny.a, tiny.b, tiny.c))
    return a, b, c


def ours(tiny: TinyCheckpoints) -> tuple[Expression, Expression, Expression]:
    a, b, c = (fs.model(str(path), name=name) for path, name in ((tiny.a, "a"), (tiny.b, "b"), (tiny.c, "c")))
    return a, b, c


@pytest.mark.parametrize("alpha", [0.25, 0.3, 0.5, 1.25])
def test_weighted_sum_is_equal_bit_by_bit(tiny: TinyCheckpoints, peer: Peer, tmp_path: Path, alpha: float) -> None:
    a, b, _ = theirs(tiny)
    x, y, _ = ours(tiny)
    found = agreement(merged(fs.weighted_sum(x, y, alpha=alpha), tmp_path), peer(sd_mecha.weighted_sum(a, b, alpha=alpha)))
    assert found.share == 1


@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_add_difference_is_equal_bit_by_bit(tiny: TinyCheckpoints, peer: Peer, tmp_path: Path, alpha: float) -> None:
    a, b, c = theirs(tiny)
    x, y, z = ours(tiny)
    found = agreement(merged(fs.add_difference(x, y, z, alpha=alpha), tmp_path), peer(sd_mecha.add_difference(a, b, c, alpha=alpha)))
    assert found.share == 1


def test_average_of_three(tiny: TinyCheckpoints, peer: Peer, tmp_path: Path) -> None:
    """sd-mecha averages by running lerps, fluxsmith by one sum, so float32 differs in the last bit.

    A third of a sum of bf16 numbers lies just between two of them in about one case of a hundred; there that bit decides.
    """
    found = agreement(merged(fs.linear(*ours(tiny)), tmp_path), peer(sd_mecha.n_average(*theirs(tiny))))
    assert found.share > 0.985
    assert found.far == 0


@pytest.mark.parametrize("alpha", [0.3, 0.5])
def test_slerp(tiny: TinyCheckpoints, peer: Peer, tmp_path: Path, alpha: float) -> None:
    a, b, _ = theirs(tiny)
    x, y, _ = ours(tiny)
    found = agreement(merged(fs.slerp(x, y, alpha=alpha), tmp_path), peer(sd_mecha.slerp(a, b, alpha=alpha)))
    assert found.share > 0.999
    assert found.far == 0


def ties_of(tiny: TinyCheckpoints, peer: Peer, models: int, **options: Any) -> dict[str, Tensor]:
    """sd-mecha's TIES on `a`: its ready-made wrapper has no `vote_sgn`, so the sum of deltas is added to the base here."""
    from sd_mecha.extensions.builtin.merge_methods.linear import add_difference

    base, *tuned = theirs(tiny)[: 1 + models]
    deltas = [sd_mecha.subtract(model, base) for model in tuned]
    return peer(add_difference(base, sd_mecha.ties_sum(*deltas, **options)))


def test_ties_that_keep_all_differ_where_deltas_cancel(tiny: TinyCheckpoints, peer: Peer, tmp_path: Path) -> None:
    """Where the sum of deltas is zero the paper's code and fluxsmith elect plus, sd-mecha no sign: the base stays."""
    found = merged(fs.ties(*ours(tiny), density=1.0), tmp_path)
    expected = ties_of(tiny, peer, 2, k=1.0, vote_sgn=True)
    a, b, c = (tensors_of(path) for path in (tiny.a, tiny.b, tiny.c))
    for name in found:
        cancel = (b[name].float() - a[name].float()) + (c[name].float() - a[name].float()) == 0
        assert torch.equal(found[name][~cancel], expected[name][~cancel])
        assert torch.equal(expected[name][cancel], a[name][cancel])
    assert agreement(found, expected).share > 0.999


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_ties_differ_in_elements_next_to_the_threshold(tiny: TinyCheckpoints, peer: Peer, tmp_path: Path, density: float) -> None:
    """sd-mecha keeps from the int((1-k) n)-th smallest magnitude on: one or two more per delta than the int(k n) largest.

    Wherever the results differ, a delta has a magnitude that only one of both keeps, or the deltas cancel.
    """
    found = merged(fs.ties(*ours(tiny), density=density), tmp_path)
    expected = ties_of(tiny, peer, 2, k=density, vote_sgn=True)
    a, b, c = (tensors_of(path) for path in (tiny.a, tiny.b, tiny.c))
    for name in found:
        one, other = (_marginal(model[name].float() - a[name].float(), density) for model in (b, c))
        explained = one[0] | other[0] | (one[1] + other[1] == 0)
        assert torch.equal(found[name][~explained], expected[name][~explained]), name
    assert agreement(found, expected).share > 0.99


def _marginal(delta: Tensor, density: float) -> tuple[Tensor, Tensor]:
    """Where only sd-mecha keeps an element, and the delta as sd-mecha trims it."""
    magnitude = delta.abs()
    ordered = magnitude.flatten().sort().values
    count = len(ordered)
    theirs = ordered[max(int((1 - density) * count), 1) - 1]
    mine = ordered[count - max(int(density * count), 1)]
    return (magnitude >= theirs) & (magnitude < mine), delta * (magnitude >= theirs)


def test_sign_by_count_is_its_default_and_not_ours(tiny: TinyCheckpoints, peer: Peer, tmp_path: Path) -> None:
    """The paper elects by magnitude. By count, two models that disagree cancel: sd-mecha keeps the base there."""
    expected = ties_of(tiny, peer, 2, k=1.0)
    by_magnitude = merged(fs.ties(*ours(tiny), density=1.0), tmp_path)
    by_count = merged(fs.ties(*ours(tiny), density=1.0, sign="count"), tmp_path)
    assert agreement(by_magnitude, expected).share < 0.7
    a, b, c = (tensors_of(path) for path in (tiny.a, tiny.b, tiny.c))
    for name in expected:
        opposed = (b[name].float() - a[name].float()).sign() == -(c[name].float() - a[name].float()).sign()
        assert torch.equal(expected[name][~opposed], by_count[name][~opposed])
        assert torch.equal(expected[name][opposed], a[name][opposed])


def test_its_default_output_is_fp16_and_prefixed(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """fluxsmith writes the type and the names of its inputs."""
    a, b, _ = theirs(tiny)
    sd_mecha.merge(sd_mecha.weighted_sum(a, b), output=tmp_path / "out.safetensors", threads=1, tqdm=Silent)
    found = tensors_of(tmp_path / "out.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    assert all(name.startswith(PREFIX) for name in found)
    x, y, _ = ours(tiny)
    fs.merge(fs.weighted_sum(x, y), tmp_path / "ours.safetensors")
    assert {name: tensor.dtype for name, tensor in tensors_of(tmp_path / "ours.safetensors").items()} == {
        name.removeprefix(PREFIX): torch.bfloat16 for name in found
    }
