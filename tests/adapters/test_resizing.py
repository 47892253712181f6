"""Another rank: the QR core against the decomposition of the dense delta, for every dialect's files and on the command line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters.containers import Container, deltas_of, lycoris, opened, saved
from adapters.test_dialects_kohya import lora
from fluxsmith.adapters.extracting.rank import RankRule
from fluxsmith.adapters.module import Span, Target
from fluxsmith.adapters.reading.opening import open_adapter
from fluxsmith.adapters.rewriting.resizing import product_svd, resized
from fluxsmith.adapters.tensors import ModuleTensors, delta_of
from fluxsmith.io.opening import open_checkpoint
from fluxsmith.layouts import Bound
from support.cli_runs import run_cli
from support.tiny_flux import TinyCheckpoints, tensors_of


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def lora_module(out: int, rank: int, *rest: int, scale: float = 0.75, dtype: torch.dtype = torch.float64) -> ModuleTensors:
    target = Target("x.weight", "transformer", "bfl", "x.weight", (out, *rest), (Span(0, 0, out),))
    kernel = (1,) * (len(rest) - 1)
    factors = {"up": randn(out, rank, *kernel, dtype=dtype), "down": randn(rank, *rest, seed=1, dtype=dtype)}
    return ModuleTensors(target, "lora", factors, {"alpha": scale * rank, "scale": scale})


@pytest.mark.parametrize("scale", [0.75, -2.0])
@pytest.mark.parametrize("out,rank,rest", [(40, 6, (70,)), (9, 12, (30,)), (70, 5, (8,)), (16, 4, (6, 3, 3))])
def test_the_core_is_the_dense_decomposition(out: int, rank: int, rest: tuple[int, ...], scale: float) -> None:
    module = lora_module(out, rank, *rest, scale=scale)
    dense = scale * module.factors["up"].flatten(1) @ module.factors["down"].flatten(1)
    u, s, vh = torch.linalg.svd(dense, full_matrices=False)
    found = resized(module, RankRule("rank", 3))
    assert found is not None
    up, down = found[0].factors["up"].flatten(1), found[0].factors["down"].flatten(1)
    expected = (u[:, :3] * s[:3]) @ vh[:3]
    assert float((up @ down - expected).norm() / expected.norm()) < 1e-12
    assert found[1].residual == pytest.approx(float(s[3:].square().sum()), rel=1e-9)
    assert found[1].energy == pytest.approx(float(s.square().sum()), rel=1e-12)
    assert (found[0].settings["alpha"], found[0].settings["scale"]) == (3.0, 1.0)
    assert found[0].factors["down"].shape == (3, *rest)


def test_a_rank_above_its_own_keeps_all() -> None:
    module = lora_module(30, 4, 20, dtype=torch.float32)
    found = resized(module, RankRule("rank", 16))
    assert found is not None
    assert found[1].rank == 4
    torch.testing.assert_close(delta_of(found[0]), delta_of(module), rtol=0, atol=1e-4)


def test_rules_see_the_spectrum_of_the_delta() -> None:
    module = lora_module(40, 8, 50)
    spectrum = torch.linalg.svdvals(0.75 * module.factors["up"] @ module.factors["down"])[:8]
    shares = (spectrum.square().cumsum(0) / spectrum.square().sum()).sqrt()
    found = resized(module, RankRule("energy", 0.9))
    assert found is not None
    assert found[1].rank == int((shares >= 0.9).nonzero()[0]) + 1
    least = resized(module, RankRule("threshold", float(spectrum[4])))
    assert least is not None
    assert least[1].rank in (4, 5)


def test_factors_of_lower_rank_than_they_look() -> None:
    up, down = randn(20, 3), randn(3, 30, seed=1)
    u, s, vh = product_svd(torch.cat([up, -up, up], 1), torch.cat([down, down, down]))
    assert len(s) == 3
    torch.testing.assert_close((u * s) @ vh, up.double() @ down.double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("algo", ["loha", "lokr"])
def test_other_algorithms_are_made_dense_first(algo: str, base: Bound, weights: dict[str, Tensor], tmp_path: Path) -> None:
    container = lycoris(weights, algo, 2)
    source = opened(container, tmp_path, base)
    assert (
        run_cli(
            "adapter", "resize", tmp_path / "adapter.safetensors", "-o", tmp_path / "out.safetensors", "--energy", 1, "--dtype", "fp32"
        ).code
        == 0
    )
    found = deltas_of(open_adapter(open_checkpoint(tmp_path / "out.safetensors"), base=base), weights)
    expected = deltas_of(source, weights)
    for key, delta in expected.items():
        torch.testing.assert_close(found[key], delta, rtol=0, atol=3e-6 * float(delta.abs().max()) + 1e-7)


def test_a_dora_needs_its_base(tmp_path: Path, weights: dict[str, Tensor], tiny: TinyCheckpoints) -> None:
    container = Container()
    key = "lora_unet_double_blocks_0_img_attn_proj"
    container.tensors = {
        f"{key}.lora_down.weight": randn(4, 48), f"{key}.lora_up.weight": randn(48, 4, seed=1), f"{key}.alpha": torch.tensor(2.0),
        f"{key}.dora_scale": randn(48, 1, seed=2).abs() + 0.5,
    }  # fmt: skip
    file, out = saved(container, tmp_path / "dora.safetensors"), tmp_path / "out.safetensors"
    refused = run_cli("adapter", "resize", file, "-o", out, "--rank", 4)
    assert (refused.code, out.exists()) == (4, False)
    assert "adapter.needs-base" in refused.err
    done = run_cli("adapter", "resize", file, "-o", out, "--energy", 1, "--base", tiny.a, "--dtype", "fp32")
    assert done.code == 0, done.err
    base_weight = weights["double_blocks.0.img_attn.proj.weight"].float()
    changed = base_weight + 0.5 * container.tensors[f"{key}.lora_up.weight"] @ container.tensors[f"{key}.lora_down.weight"]
    expected = container.tensors[f"{key}.dora_scale"] * changed / changed.norm(dim=1, keepdim=True) - base_weight
    opened_again = open_adapter(open_checkpoint(out))
    found = deltas_of(opened_again, weights)["double_blocks.0.img_attn.proj.weight"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_command_keeps_dialect_and_type(weights: dict[str, Tensor], tmp_path: Path) -> None:
    container = lora(weights)
    container.tensors = {key: t.half() if "lora_" in key.split(".", 1)[1] else t for key, t in container.tensors.items()}
    file = saved(container, tmp_path / "adapter.safetensors")
    run = run_cli("adapter", "resize", file, "-o", tmp_path / "out.safetensors", "--rank", 2, "--json")
    assert run.code == 0, run.err
    told = json.loads(run.out)
    assert told["dialect"] == "kohya"
    assert 0 < told["kept"] < 1
    tensors = tensors_of(tmp_path / "out.safetensors")
    assert {t.dtype for key, t in tensors.items() if "lora_up" in key} == {torch.float16}
    assert all(t.shape[1] <= 2 for key, t in tensors.items() if "lora_up" in key)
    assert all(float(t) <= 2 for key, t in tensors.items() if key.endswith(".alpha"))


def test_a_rank_is_asked_for(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    file = saved(lora(weights), tmp_path / "adapter.safetensors")
    run = run_cli("adapter", "resize", file, "-o", tmp_path / "out.safetensors")
    assert run.code == 2
    assert "usage.rank-rule" in run.err
    over = run_cli("adapter", "resize", file, "-o", file, "--rank", 2, "--force")
    assert "output.is-input" in over.err


def test_a_delta_of_zero_is_left_out() -> None:
    module = lora_module(10, 2, 12)
    assert resized(replace(module, factors={**module.factors, "up": torch.zeros(10, 2)}), RankRule("rank", 2)) is None
