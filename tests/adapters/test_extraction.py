"""Extraction of adapters from two checkpoints: what is exact comes back, what is not is reported, and an interrupted run goes on."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import fluxsmith as fs
from fluxsmith.adapters.extracting.extraction import Options
from fluxsmith.adapters.extracting.rank import RankRule
from fluxsmith.adapters.reading.opening import open_adapter
from fluxsmith.engine.execution import Execution, Settings
from fluxsmith.engine.extraction import Wish, extract
from fluxsmith.engine.plan import Job, Plan
from fluxsmith.errors import IncompatibleError, Interrupted
from fluxsmith.io.opening import open_checkpoint
from fluxsmith.recipes.recipe import Recipe
from support.cli_runs import run_cli
from support.tiny_all_in_one import save_all_in_one
from support.tiny_flux import TinyCheckpoints, tensors_of

QKV, MLP, BIAS = "double_blocks.0.img_attn.qkv.weight", "single_blocks.1.linear1.weight", "double_blocks.0.img_attn.proj.bias"


def tuned(base: Path, changes: Mapping[str, Tensor], file: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The base in fp32 with changes to some of its tensors."""
    tensors = {key: tensor.float() for key, tensor in tensors_of(base).items()}
    assert changes.keys() <= tensors.keys()
    save_file({key: (tensor + changes[key] if key in changes else tensor).to(dtype) for key, tensor in tensors.items()}, file)
    return file


def randn(*shape: int, seed: int = 0) -> Tensor:
    return 0.05 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank(tensor: Tensor, rank: int, seed: int) -> Tensor:
    return randn(tensor.shape[0], rank, seed=seed) @ randn(rank, tensor.shape[1], seed=seed + 1)


def wish(rule: RankRule | None = None, dialect: str = "kohya", dtype: str = "fp32", **options: object) -> Wish:
    return Wish(Options(rule=rule or RankRule("rank", 4), **options), dialect, dtype)  # pyright: ignore[reportArgumentType]


def difference(after: Path, before: Path) -> Recipe:
    return Recipe(fs.model(str(after), name="tuned") - fs.model(str(before), name="base"))


def applied(base: Path, adapter: Path) -> dict[str, Tensor]:
    return fs.load_state_dict(fs.model(str(base), name="base") + fs.adapter(str(adapter), name="adapter"), layout="bfl", dtype="fp32")


def canonical(model: Path) -> dict[str, Tensor]:
    return fs.load_state_dict(fs.model(str(model)), layout="bfl", dtype="fp32")


@pytest.mark.parametrize("dialect", ["kohya", "comfy", "diffusers"])
def test_deltas_of_low_rank_come_back(dialect: str, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    weights = tensors_of(tiny.a)
    changes = {key: low_rank(weights[key], 3, seed) for seed, key in enumerate([QKV, MLP, "final_layer.adaLN_modulation.1.weight"])}
    after = tuned(tiny.a, changes, tmp_path / "tuned.safetensors")
    done = extract(difference(after, tiny.sharded), tmp_path / "out.safetensors", wish(dialect=dialect))
    assert {finding.tensor for finding in done.findings} == set(changes)
    assert all(finding.algorithm == "lora" and finding.residual < 1e-10 * finding.energy for finding in done.findings)
    found, expected = applied(tiny.a, tmp_path / "out.safetensors"), canonical(after)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-6)


def test_q_k_and_v_are_apart_in_the_diffusers_layout(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    after = tuned(tiny.a, {QKV: low_rank(tensors_of(tiny.a)[QKV], 2, 0)}, tmp_path / "tuned.safetensors")
    done = extract(difference(after, tiny.a), tmp_path / "out.safetensors", wish(RankRule("rank", 2), "diffusers"))
    assert [finding.stored.split(".")[-2] for finding in done.findings] == ["to_q", "to_k", "to_v"]


def test_a_kronecker_product_comes_back(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    after = tuned(tiny.a, {QKV: torch.kron(randn(4, 4), randn(36, 12, seed=1))}, tmp_path / "tuned.safetensors")
    done = extract(difference(after, tiny.a), tmp_path / "out.safetensors", wish(algorithm="lokr"))
    assert [finding.algorithm for finding in done.findings] == ["lokr"]
    torch.testing.assert_close(applied(tiny.a, tmp_path / "out.safetensors")[QKV], canonical(after)[QKV], rtol=0, atol=1e-7)


@pytest.mark.parametrize("dialect", ["kohya", "lycoris"])
def test_with_the_full_residual_the_tuned_model_is_made_again(dialect: str, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """Of two models without anything in common, whose deltas have full rank, biases and norms included."""
    done = extract(difference(tiny.b, tiny.sharded), tmp_path / "out.safetensors", wish(dialect=dialect, full_residual=True))
    assert not done.left_out
    assert done.equal == 0
    found, expected = applied(tiny.a, tmp_path / "out.safetensors"), canonical(tiny.b)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=3e-8)


def test_vectors_are_differences_where_the_dialect_holds_them(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    changes = {BIAS: randn(48), "double_blocks.0.img_attn.norm.query_norm.scale": randn(24)}
    after = tuned(tiny.a, changes, tmp_path / "tuned.safetensors")
    extract(difference(after, tiny.a), tmp_path / "out.safetensors", wish())
    found, expected = applied(tiny.a, tmp_path / "out.safetensors"), canonical(after)
    assert all(torch.allclose(found[key], expected[key], rtol=0, atol=1e-7) for key in expected)
    with pytest.raises(IncompatibleError) as caught:
        extract(difference(after, tiny.a), tmp_path / "other.safetensors", Wish(Options(), "xlabs", biases=True))
    assert caught.value.code == "adapter.algorithm"


def test_rank_rules_are_those_of_each_matrix(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    done = extract(difference(tiny.b, tiny.a), tmp_path / "out.safetensors", wish(RankRule("energy", 0.6)))
    before, after = canonical(tiny.a), canonical(tiny.b)
    matrices = [finding for finding in done.findings if finding.algorithm == "lora"]
    assert len(matrices) > 20
    for finding in matrices:
        spectrum = torch.linalg.svdvals((after[finding.tensor] - before[finding.tensor]).double())
        shares = (spectrum.square().cumsum(0) / spectrum.square().sum()).sqrt()
        assert finding.rank == int((shares >= 0.6).nonzero()[0]) + 1
        assert finding.residual == pytest.approx(float(spectrum[finding.rank :].square().sum()), rel=1e-5)


def test_the_file_says_how_it_was_made(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    extract(difference(tiny.b, tiny.a), tmp_path / "out.safetensors", wish())
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    made = json.loads(metadata["fluxsmith.extraction"])
    assert (made["algorithm"], made["rule"], made["value"]) == ("lora", "rank", 4)
    assert 0 < made["blocks"]["double.0"]["kept"] < 1
    assert "blake3:0000" not in metadata["fluxsmith.inputs"]
    assert "tuned" in metadata["fluxsmith.recipe"]
    assert metadata["ss_network_dim"] == metadata["ss_network_alpha"] == "4"
    assert metadata["ss_base_model_version"] == "flux1"
    opened = open_adapter(open_checkpoint(tmp_path / "out.safetensors"))
    assert opened.dialect == "kohya"


def test_rounding_is_estimated(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """A rank-1 change that was rounded to bf16: the estimate is the energy of what rounding did, of the tuned and of the base."""
    weights = tensors_of(tiny.a)
    change = {MLP: low_rank(weights[MLP], 1, 0)}
    exact = tuned(tiny.a, change, tmp_path / "exact.safetensors")
    rounded = tuned(tiny.a, change, tmp_path / "rounded.safetensors", torch.bfloat16)
    done = extract(difference(rounded, tiny.a), tmp_path / "out.safetensors", wish())
    found = next(finding for finding in done.findings if finding.tensor == MLP)
    error = float((tensors_of(rounded)[MLP].float() - tensors_of(exact)[MLP]).double().square().sum())
    assert found.noise == pytest.approx(2 * error, rel=0.1)  # the base was not rounded here, but is taken to be
    assert found.above == 1
    assert found.rank == 4


def test_nothing_is_written_where_nothing_differs(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError) as caught:
        extract(difference(tiny.a, tiny.sharded), tmp_path / "out.safetensors", wish())
    assert caught.value.code == "adapter.changes-nothing"
    assert list(tmp_path.iterdir()) == []


class Stopping:
    """Stops a run after some bytes of deltas."""

    def __init__(self, limit: int) -> None:
        self.left, self.run = limit, None

    def started(self, plan: Plan, execution: Execution, done_bytes: int) -> None:
        self.run, self.done = execution, done_bytes

    def advanced(self, count: int, job: Job) -> None:
        self.left -= count
        if self.left <= 0:
            assert self.run is not None
            self.run.stop()


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_an_interrupted_run_goes_on_to_the_same_bytes(share: float, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    whole, other = tmp_path / "whole.safetensors", tmp_path / "other.safetensors"
    job, one = difference(tiny.b, tiny.a), Settings(threads=1)
    extract(job, whole, wish(), settings=one)
    size = 4 * sum(tensor.numel() for tensor in tensors_of(tiny.a).values())
    with pytest.raises(Interrupted):
        extract(job, other, wish(), settings=one, observer=Stopping(int(share * size)))
    assert not other.exists()
    with pytest.raises(IncompatibleError) as caught:
        extract(job, other, wish(RankRule("rank", 5)), resume=True)
    assert caught.value.code == "output.other-run"
    going_on = Stopping(2 * size)
    extract(job, other, wish(), settings=Settings(threads=2), resume=True, observer=going_on)
    assert 0 < going_on.done < size
    assert going_on.left == 2 * size - (size - going_on.done)
    assert other.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.safetensors", "whole.safetensors"]


def test_a_formula_and_selectors_on_the_command_line(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    models = ["-m", f"a={tiny.a}", "-m", f"b={tiny.b}", "-m", f"c={tiny.c}"]
    run = run_cli("extract", "0.5*b + 0.5*c - a", *models, "-o", out, "--rank", 2, "--select", "double.1", "--no-biases", "--json")
    assert run.code == 0, run.err
    told = json.loads(run.out)
    assert list(told["blocks"]) == ["double.1"]
    assert told["left_out"] == {"not selected": 92 - 24, "vectors": 14}
    keys = list(tensors_of(out))
    assert keys and all("double_blocks_1" in key for key in keys)
    again = run_cli("extract", tiny.b, tiny.a, "-o", out)
    assert again.code == 2
    assert "output.exists" in again.err


@pytest.mark.parametrize(
    "words,code",
    [
        (["--rank", 4, "--energy", 0.5], "usage.rank-rule"),
        (["--algo", "lokr", "--rank", 4], "usage.rank-rule"),
        (["--factor", 4], "usage.factor"),
        (["--dialect", "koyha"], "usage.unknown-dialect"),
        (["--dialect", "kohya", "--layout", "diffusers"], "usage.dialect-and-layout"),
        (["--energy", 1.5], "usage.rank-rule"),
        (["--select", "double.77"], "recipe.selector-without-match"),
        (["-m", "x=y"], "usage.model-of-no-formula"),
        (["--algo", "lokr", "--dialect", "xlabs"], "adapter.algorithm"),
    ],
)
def test_wrong_words_are_refused_before_the_run(words: list[object], code: str, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    run = run_cli("extract", tiny.b, tiny.a, "-o", tmp_path / "out.safetensors", *words)
    assert f"error[{code}]" in run.err
    assert run.code in (2, 4)
    assert list(tmp_path.iterdir()) == []


def test_the_output_is_no_input(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    before = tiny.b.read_bytes()
    run = run_cli("extract", tiny.b, tiny.a, "-o", tiny.b, "--force")
    assert "output.is-input" in run.err
    assert tiny.b.read_bytes() == before


def test_a_weight_is_no_delta(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    run = run_cli("extract", "a", "-m", f"a={tiny.a}", "-o", tmp_path / "out.safetensors")
    assert "recipe.wrong-space" in run.err
    assert "subtract a base" in run.err


def test_vectors_that_a_dialect_cannot_hold_are_told(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """Only those that differ, and as a part of what is lost."""
    change = {QKV: low_rank(tensors_of(tiny.a)[QKV], 2, 0), BIAS: randn(48)}
    after = tuned(tiny.a, change, tmp_path / "tuned.safetensors")
    run = run_cli("extract", after, tiny.a, "-o", tmp_path / "out.safetensors", "--rank", 2, "--dialect", "xlabs", "--json")
    assert run.code == 0, run.err
    told = json.loads(run.out)
    assert told["unheld"] == [BIAS]
    assert "1 vectors differ and are left out" in run.err
    assert told["modules"] == 1
    lost = float(change[BIAS].square().sum()) / float(sum(tensor.square().sum() for tensor in change.values()))
    assert told["kept"] == pytest.approx((1 - lost) ** 0.5, rel=1e-5)
    meant = run_cli(
        "extract", after, tiny.a, "-o", tmp_path / "out.safetensors", "--rank", 2, "--dialect", "xlabs", "--force", "--no-biases"
    )
    assert "left out" not in meant.err


def test_a_place_is_needed_only_for_what_differs(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    run = run_cli("extract", tiny.b, tiny.a, "-o", tmp_path / "out.safetensors", "--dialect", "xlabs")
    assert run.code == 4
    assert "adapter.no-place" in run.err
    assert list(tmp_path.iterdir()) == []


def test_components_of_all_in_one_files(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    wholes: list[Path] = []
    for seed, transformer in enumerate((tiny.a, tiny.b)):
        (tmp_path / str(seed)).mkdir()
        wholes.append(save_all_in_one(tmp_path / str(seed), transformer, seed=seed).whole)
    out = tmp_path / "out.safetensors"
    refused = run_cli("extract", wholes[1], wholes[0], "-o", out)
    assert refused.code == 4
    assert "adapter.component" in refused.err and "no names for vae" in refused.err
    run = run_cli("extract", wholes[1], wholes[0], "-o", out, "--components", "transformer,clip_l", "--rank", 2)
    assert run.code == 0, run.err
    assert {key.split("_")[1] for key in tensors_of(out)} == {"unet", "te1"}


def test_an_extraction_is_made_again_from_its_file(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """Byte for byte, also where an input has moved."""
    first, moved = tmp_path / "first.safetensors", tmp_path / "moved.safetensors"
    tuned_file = tuned(tiny.a, {QKV: low_rank(tensors_of(tiny.a)[QKV], 2, 0)}, tmp_path / "tuned.safetensors")
    run = run_cli("extract", tuned_file, tiny.a, "-o", first, "--energy", "0.9", "--dtype", "fp32", "--select", "double", "--no-biases")
    assert run.code == 0, run.err
    tuned_file.rename(moved)
    again = tmp_path / "again.safetensors"
    assert run_cli("reproduce", first, "-o", again).code == 3
    run = run_cli("reproduce", first, "-o", again, "-m", f"tuned={moved}")
    assert run.code == 0, run.err
    assert again.read_bytes() == first.read_bytes()
