"""`fluxsmith ema`: averages over a run's checkpoints, against the recursions that define them."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fluxsmith.methods.ema import WIDEST, exponential_coefficients, power_coefficients, power_exponent
from support.cli_runs import run_cli


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_exponential_coefficients_are_those_of_repeated_lerps(count: int, alpha: float) -> None:
    """The loop that users run by hand: e = lerp(e, m, alpha), beginning with the first checkpoint."""
    rows = torch.eye(count, dtype=torch.float64)
    average = rows[0]
    for row in rows[1:]:
        average = torch.lerp(average, row, alpha)
    assert exponential_coefficients(count, alpha) == pytest.approx(average.tolist(), abs=1e-15)


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.1, 0.2, WIDEST])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_power_coefficients_are_those_of_the_recursion(count: int, sigma: float) -> None:
    """Karras et al. 2024, equation 120: beta(t) = (1 - 1/t)^(gamma + 1)."""
    gamma = power_exponent(sigma)
    rows = torch.eye(count, dtype=torch.float64)
    average = torch.zeros(count, dtype=torch.float64)
    for t, row in enumerate(rows, start=1):
        beta = (1 - 1 / t) ** (gamma + 1)
        average = beta * average + (1 - beta) * row
    assert power_coefficients(count, sigma) == pytest.approx(average.tolist(), abs=1e-12)


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.25])
def test_the_profile_has_the_width_that_was_asked_for(sigma: float) -> None:
    """The standard deviation of a checkpoint's place in a long run, as a share of the run."""
    count = 20000
    weights = torch.tensor(power_coefficients(count, sigma), dtype=torch.float64)
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    mean = (weights * places).sum()
    assert float((weights * (places - mean) ** 2).sum().sqrt()) == pytest.approx(sigma, rel=1e-3)


def test_known_exponents() -> None:
    """EDM2's reference values: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94; the uniform profile is 1/sqrt(12)."""
    assert power_exponent(0.05) == pytest.approx(16.97, abs=0.01)
    assert power_exponent(0.10) == pytest.approx(6.94, abs=0.01)
    assert power_exponent(WIDEST) == pytest.approx(0.0, abs=1e-6)
    assert math.isclose(WIDEST, 0.288675, rel_tol=1e-5)


@pytest.fixture
def run(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"step-{i}" / "transformer" / "model.safetensors" for i in (1, 2, 3)]
    for i, file in enumerate(files):
        file.parent.mkdir(parents=True)
        save_file({"a": torch.full((5, 4), float(i)), "b": torch.arange(6.0) + i}, file)
    return files


def test_one_value_makes_the_output_itself(run: list[Path], tmp_path: Path) -> None:
    ended = run_cli("ema", *run, "-o", tmp_path / "ema.safetensors", "--alpha", 0.5, "-q")
    assert ended.code == 0, ended.err
    assert torch.equal(load_file(tmp_path / "ema.safetensors")["a"], torch.full((5, 4), 1.25))


def test_several_values_make_a_sweep(run: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "sweep.safetensors"
    ended = run_cli("ema", *run, "-o", out, "--alpha", "0.2,0.9", "--alpha", 1, "--sigma-rel", WIDEST, "-q")
    assert ended.code == 0, ended.err
    expected = {"alpha0.2": 0.2 * 0.8 + 2 * 0.2, "alpha0.9": 0.9 * 0.1 + 2 * 0.9, "alpha1": 2.0, "sigma0.288675": 1.0}
    for label, value in expected.items():
        found = load_file(tmp_path / f"sweep_{label}.safetensors")
        assert torch.allclose(found["a"], torch.tensor(value)), label
        assert torch.allclose(found["b"], torch.arange(6.0) + value), label
    assert not out.exists()


def test_folders_get_the_value_at_their_end(run: list[Path], tmp_path: Path) -> None:
    ended = run_cli("ema", *run, "-o", tmp_path / "averages.v1", "--alpha", "0.5,1", "-q")
    assert ended.code == 0, ended.err
    assert (tmp_path / "averages.v1_alpha0.5").is_dir()


def test_the_average_can_be_made_again_from_the_file(run: list[Path], tmp_path: Path) -> None:
    out, again = tmp_path / "ema.safetensors", tmp_path / "again.safetensors"
    assert run_cli("ema", *run, "-o", out, "--sigma-rel", 0.1, "-q").code == 0
    ended = run_cli("reproduce", out, "-o", again, "-q")
    assert ended.code == 0, ended.err
    assert all(torch.equal(tensor, load_file(again)[name]) for name, tensor in load_file(out).items())


def test_an_input_that_has_moved_is_asked_for_by_its_name(run: list[Path], tmp_path: Path) -> None:
    out, again = tmp_path / "ema.safetensors", tmp_path / "again.safetensors"
    assert run_cli("ema", *run, "-o", out, "--alpha", 0.5, "-q").code == 0
    moved = run[0].rename(tmp_path / "moved.safetensors")
    ended = run_cli("reproduce", out, "-o", again, "-q")
    assert (ended.code, "-m model_1=PATH" in ended.err) == (3, True)
    assert run_cli("reproduce", out, "-o", again, "-q", "-m", f"model_1={moved}").code == 0
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.parametrize(("words", "code", "told"), [
    ([], "usage.no-average", "--alpha 0.9"),
    (["--alpha", "much"], "usage.number", "`much`"),
    (["--alpha", "0.5,0.9", "--alpha", "0.50"], "usage.number", "0.5 twice"),
    (["--alpha", "1.5"], "recipe.bad-value", "between 0 and 1"),
    (["--sigma-rel", "0.4"], "recipe.bad-value", "`sigma_rel`"),
    (["--alpha", "nan"], "recipe.bad-value", "finite"),
])  # fmt: skip
def test_bad_values(words: list[str], code: str, told: str, run: list[Path], tmp_path: Path) -> None:
    ended = run_cli("ema", *run, "-o", tmp_path / "ema.safetensors", *words)
    assert ended.code in (2, 4)
    assert code in ended.err
    assert told in ended.err
    assert not (tmp_path / "ema.safetensors").exists()


def test_one_checkpoint_is_no_average(run: list[Path], tmp_path: Path) -> None:
    ended = run_cli("ema", run[0], "-o", tmp_path / "ema.safetensors", "--alpha", 0.9)
    assert (ended.code, "usage.one-checkpoint" in ended.err) == (2, True)
