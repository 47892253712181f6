"""Every method against its definition, stated here once more over whole tensors in float64."""

from pathlib import Path

import pytest
from torch import Tensor

import fluxsmith as fs
from fluxsmith.errors import RecipeError
from fluxsmith.recipes.expressions import Expression
from support.tiny_flux import TinyCheckpoints, tensors_of


@pytest.fixture(scope="module")
def whole(tiny: TinyCheckpoints) -> list[dict[str, Tensor]]:
    return [{key: t.double() for key, t in tensors_of(path).items()} for path in (tiny.a, tiny.b, tiny.c)]


def run(wish: Expression, tmp_path: Path) -> dict[str, Tensor]:
    fs.merge(wish, tmp_path / "out.safetensors", dtype="fp32")
    return tensors_of(tmp_path / "out.safetensors")


def models(tiny: TinyCheckpoints) -> list[Expression]:
    return [fs.model(str(path), name=name) for path, name in ((tiny.a, "a"), (tiny.b, "b"), (tiny.c, "c"))]


def close(found: Tensor, expected: Tensor) -> bool:
    return bool(((found.double() - expected).abs() <= 3e-7 * expected.abs() + 5e-8).all())


def test_linear_methods(tiny: TinyCheckpoints, whole: list[dict[str, Tensor]], tmp_path: Path) -> None:
    a, b, c = models(tiny)
    cases = {
        fs.weighted_sum(a, b, alpha=0.3): lambda x, y, z: 0.7 * x + 0.3 * y,
        fs.linear(a, b, c, weights=[1.0, 2.0, 5.0]): lambda x, y, z: (x + 2 * y + 5 * z) / 8,
        fs.linear(a, b): lambda x, y, z: (x + y) / 2,
        fs.add_difference(a, b, c, alpha=0.4): lambda x, y, z: x + 0.4 * (y - z),
        fs.task_arithmetic(a, b, c, weights=[0.3, 0.5], scale=1.5): lambda x, y, z: x + 1.5 * (0.3 * (y - x) + 0.5 * (z - x)),
        a + (b - c) * 0.3: lambda x, y, z: x + 0.3 * (y - z),
        (a + b + c) / 3: lambda x, y, z: (x + y + z) / 3,
        fs.weighted_sum(fs.weighted_sum(a, b, alpha=0.5), c, alpha=0.5): lambda x, y, z: 0.25 * x + 0.25 * y + 0.5 * z,
    }
    for i, (wish, expected) in enumerate(cases.items()):
        folder = tmp_path / str(i)
        folder.mkdir()
        out = run(wish, folder)
        assert all(close(out[key], expected(*(m[key] for m in whole))) for key in out), wish


def test_slerp_keeps_the_arc_and_the_norms(tiny: TinyCheckpoints, whole: list[dict[str, Tensor]], tmp_path: Path) -> None:
    import torch

    a, b, _ = models(tiny)
    out = run(fs.slerp(a, b, alpha=0.25), tmp_path)
    for key, found in out.items():
        x, y = whole[0][key].flatten(), whole[1][key].flatten()
        angle = torch.arccos(torch.dot(x, y) / x.norm() / y.norm())
        norm = 0.75 * x.norm() + 0.25 * y.norm()
        direction = (torch.sin(0.75 * angle) * x / x.norm() + torch.sin(0.25 * angle) * y / y.norm()) / torch.sin(angle)
        assert close(found.flatten(), direction * norm)
        assert abs(found.double().norm() / norm - 1) < 1e-6


def ties_by_definition(base: Tensor, models: list[Tensor], density: float, weights: list[float], by_count: bool) -> Tensor:
    """Yadav et al. 2023, section 3: trim by magnitude, elect by mass (or count), disjoint mean."""
    import torch

    total, divisor, votes = (torch.zeros_like(base) for _ in range(3))
    trimmed = []
    for model, weight in zip(models, weights, strict=True):
        delta = (model - base).float().double()  # the engine subtracts in float32
        k = max(int(density * delta.numel()), 1)
        threshold = delta.abs().flatten().sort(descending=True).values[k - 1]
        trimmed.append((torch.where(delta.abs() >= threshold, delta, 0.0), weight))
        votes += trimmed[-1][0].sign() if by_count else trimmed[-1][0] * weight
    sign = torch.where(votes >= 0, 1.0, -1.0)
    for delta, weight in trimmed:
        agrees = (delta.sign() == sign).double()
        total += agrees * delta * weight
        divisor += agrees * weight
    return base + total / divisor.where(divisor != 0, torch.ones_like(divisor))


@pytest.mark.parametrize(
    ("density", "sign"), [(0.5, "magnitude"), (0.2, "magnitude"), (0.9, "count"), (1.0, "magnitude"), (0.0, "magnitude")]
)
def test_ties_is_the_paper(density: float, sign: str, tiny: TinyCheckpoints, whole: list[dict[str, Tensor]], tmp_path: Path) -> None:
    a, b, c = models(tiny)
    out = run(fs.ties(a, b, c, density=density, weights=[1.0, 0.5], sign=sign), tmp_path)
    for key in out:
        x, y, z = (m[key] for m in whole)
        assert close(out[key], ties_by_definition(x, [y, z], density, [1.0, 0.5], sign == "count")), key


def test_dare_keeps_the_share_and_the_expectation(tiny: TinyCheckpoints, whole: list[dict[str, Tensor]], tmp_path: Path) -> None:
    a, b, _ = models(tiny)
    out = run(fs.dare_linear(a, b, density=0.25), tmp_path)
    kept = count = 0
    for key, found in out.items():
        delta, got = whole[1][key] - whole[0][key], found.double() - whole[0][key]
        changed = got.abs() > 1e-6
        assert ((got - delta / 0.25).abs()[changed] < 1e-5).all(), key
        kept, count = kept + int(changed.sum()), count + changed.numel()
    assert abs(kept / count - 0.25) < 0.005


def test_a_users_method_streams_like_ours(tiny: TinyCheckpoints, whole: list[dict[str, Tensor]], tmp_path: Path) -> None:
    import torch

    from fluxsmith.methods import METHODS

    @fs.merge_method
    def smooth_max(a: fs.Weight, b: fs.Weight, *, beta: float = 10.0) -> fs.Weight:
        """A maximum without a corner."""
        return torch.logaddexp(a * beta, b * beta) / beta

    try:
        a, b, _ = models(tiny)
        out = run(smooth_max(a, b, beta=5.0), tmp_path)
        for key, found in out.items():
            expected = torch.logaddexp(whole[0][key] * 5, whole[1][key] * 5) / 5
            assert (found - expected).abs().max() < 1e-6
    finally:
        METHODS.pop("smooth_max")


def test_wrong_calls_are_refused(tiny: TinyCheckpoints) -> None:
    a, b, _ = models(tiny)
    cases = {
        "recipe.wrong-arity": lambda: fs.weighted_sum(a, b, a),
        "recipe.unknown-option": lambda: fs.weighted_sum(a, b, alhpa=0.3),
        "recipe.bad-value": lambda: fs.weighted_sum(a, b, alpha=float("nan")),
        "recipe.wrong-length": lambda: fs.linear(a, b, weights=[1.0]),
        "recipe.wrong-space": lambda: fs.plan(a - b),
    }
    for code, build in cases.items():
        with pytest.raises(RecipeError) as caught:
            build()
        assert caught.value.code == code
    with pytest.raises(RecipeError, match="density"):
        fs.ties(a, b, density=1.5)


def test_slerp_of_fine_tunes_keeps_their_norm() -> None:
    """A degree apart, where a straight line would be shorter by w^2/8, one part in 40,000 for this angle."""
    import torch

    a = torch.zeros(4096)
    a[0] = 1.0
    angle = 0.014
    b = torch.zeros(4096)
    b[0], b[1] = torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))
    out = fs.load_state_dict(fs.slerp(fs.state_dict({"w": a}, name="a"), fs.state_dict({"w": b}, name="b"), alpha=0.5))["w"]
    assert float(out.double().norm()) == pytest.approx(1.0, abs=3e-7)
    assert float(torch.lerp(a, b, 0.5).double().norm()) < 1 - 2e-5
    assert float(out[1] / out[0]) == pytest.approx(float(torch.tan(torch.tensor(angle / 2))), rel=1e-4)
