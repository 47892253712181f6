"""Adapters merged into one: the sum against PEFT's and against dense deltas, for negative weights, other algorithms and layouts."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fluxsmith as fs
from adapters.containers import Container, lycoris, saved
from adapters.test_dialects_bfl import fused
from adapters.test_dialects_kohya import lora
from fluxsmith.methods.dare import dare_linear
from fluxsmith.methods.ties import ties
from fluxsmith.recipes.expressions import Expression
from support.cli_runs import run_cli
from support.tiny_flux import TinyCheckpoints, make_transformer, tensors_of

Weights = dict[str, Tensor]


def delta(of: Expression, base: Path, layout: str = "bfl") -> Weights:
    """What an expression adds to the base, in fp32."""
    before = fs.load_state_dict(fs.model(str(base), name="base"), layout=layout, dtype="fp32")
    after = fs.load_state_dict(of, layout=layout, dtype="fp32")
    return {key: tensor - before[key] for key, tensor in after.items()}


def applied(base: Path, *adapters: tuple[float, Path]) -> Expression:
    root: Expression = fs.model(str(base), name="base")
    for number, (weight, path) in enumerate(adapters):
        root = root + weight * fs.adapter(str(path), name=f"adapter{number}")
    return root


def agree(found: Weights, expected: Weights, tolerance: float = 2e-6) -> None:
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    assert largest > 0
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=tolerance * largest, msg=key)


def merge(out: Path, *words: object) -> dict[str, Any]:
    run = run_cli("adapter", "merge", *words, "-o", out, "--json")
    assert run.code == 0, run.err
    return json.loads(run.out)


PAIRS: dict[str, Callable[[Weights], tuple[Container, Container]]] = {
    "lora, lora": lambda weights: (lora(weights), lora(weights)),
    "lora, loha": lambda weights: (lora(weights), lycoris(weights, "loha", 3)),
    "lokr, full": lambda weights: (lycoris(weights, "lokr", 2), lycoris(weights, "full", 2)),
    "lora, comfy lora": lambda weights: (lora(weights), fused(weights, "diffusion_model.", alpha=True)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_sum_is_the_sum_of_deltas(name: str, tiny: TinyCheckpoints, weights: Weights, tmp_path: Path) -> None:
    files = [saved(container, tmp_path / f"{i}.safetensors") for i, container in enumerate(PAIRS[name](weights))]
    merge(tmp_path / "out.safetensors", *files, "-w", 0.7, "-w", -0.4)
    agree(
        delta(applied(tiny.a, (1.0, tmp_path / "out.safetensors")), tiny.a),
        delta(applied(tiny.a, (0.7, files[0]), (-0.4, files[1])), tiny.a),
    )


def test_an_adapter_and_its_opposite_are_nothing(weights: Weights, tmp_path: Path) -> None:
    container = lora(weights)
    container.tensors = {key: tensor for key, tensor in container.tensors.items() if "_lora" in key or "lora_" in key or "alpha" in key}
    file = saved(container, tmp_path / "a.safetensors")
    run = run_cli("adapter", "merge", file, file, "-o", tmp_path / "out.safetensors", "-w", 1, "-w", -1)
    assert run.code == 4
    assert "adapter.changes-nothing" in run.err
    assert not (tmp_path / "out.safetensors").exists()


def test_different_targets_are_united_and_the_rank_is_the_sum(weights: Weights, tmp_path: Path) -> None:
    container = lora(weights)
    stems = sorted({key.split(".")[0] for key in container.tensors if "lora_down" in key})
    halves = (set(stems[: len(stems) // 2 + 1]), set(stems[len(stems) // 2 :]))  # one is in both
    files: list[Path] = []
    for number, half in enumerate(halves):
        part = Container({key: tensor for key, tensor in container.tensors.items() if key.split(".")[0] in half})
        files.append(saved(part, tmp_path / f"{number}.safetensors"))
    merge(tmp_path / "out.safetensors", *files)
    found = tensors_of(tmp_path / "out.safetensors")
    assert {key.split(".")[0] for key in found if "lora_down" in key} == set(stems)
    shared = next(iter(halves[0] & halves[1]))
    for stem in stems:
        own = len(container.tensors[f"{stem}.lora_down.weight"])
        assert len(found[f"{stem}.lora_down.weight"]) == own * (2 if stem == shared else 1)
    assert float(found[f"{shared}.alpha"]) == len(found[f"{shared}.lora_down.weight"])


@pytest.fixture(scope="module")
def peft_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Two adapters of PEFT's on the tiny transformer, their ranks and alphas different, saved and in memory."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = make_transformer(1).float()
    one = LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", "to_k", "proj_mlp"], init_lora_weights=False)
    two = LoraConfig(r=3, lora_alpha=1, target_modules=["to_q", "to_v", "proj_mlp"], init_lora_weights=False, use_rslora=True)
    wrapped = get_peft_model(model, one, adapter_name="one")  # pyright: ignore[reportArgumentType]
    wrapped.add_adapter("two", two)
    folder = tmp_path_factory.mktemp("peft")
    wrapped.save_pretrained(str(folder), selected_adapters=["one", "two"])
    return folder, wrapped


@pytest.mark.parametrize("combination,weights", [("cat", (0.7, 0.4)), ("cat", (0.7, -0.4)), ("svd", (1.0, 0.5))])
def test_pefts_sum(
    combination: str, weights: tuple[float, float], peft_pair: tuple[Path, Any], tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    folder, wrapped = peft_pair
    name = f"{combination}{weights[1]}".replace(".", "_")
    rank = {"svd_rank": 5} if combination == "svd" else {}
    wrapped.add_weighted_adapter(["one", "two"], list(weights), name, combination_type=combination, **rank)
    words = ["--method", "svd", "--rank", 5] if combination == "svd" else []
    out = tmp_path / "out.safetensors"
    merge(
        out,
        folder / "one",
        folder / "two",
        "-w",
        weights[0],
        "-w",
        weights[1],
        "--dialect",
        "kohya" if combination == "cat" else "lycoris",
        *words,
    )
    found = delta(applied(tiny.a, (1.0, out)), tiny.a, "diffusers")
    checked = 0
    for key, module in wrapped.base_model.model.named_modules():
        if name in getattr(module, "lora_A", {}):
            expected = module.get_delta_weight(name)
            torch.testing.assert_close(found[f"{key}.weight"], expected, rtol=0, atol=3e-5 * float(expected.abs().max()) + 2e-7, msg=key)
            checked += 1
    assert checked > 8


METHODS: dict[str, tuple[list[str], Callable[..., Expression]]] = {
    "ties": (["density=0.3"], lambda base, *models: ties(base, *models, density=0.3)),
    "dare_linear": (["density=0.5"], lambda base, *models: dare_linear(base, *models, density=0.5)),
}


@pytest.mark.parametrize("name", METHODS)
def test_any_method_merges_deltas(name: str, weights: Weights, tmp_path: Path) -> None:
    """The result, with all its ranks kept, is that of the method on models of zeros plus the deltas."""
    files = [saved(c, tmp_path / f"{i}.safetensors") for i, c in enumerate((lora(weights), fused(weights, "diffusion_model.", alpha=True)))]
    words, method = METHODS[name]
    told = merge(
        tmp_path / "out.safetensors", *files, "-w", 0.7, "--method", name, *[w for o in words for w in ("--option", o)], "--energy", 1
    )
    assert told["kept"] == pytest.approx(1)
    nothing = {key: torch.zeros(tensor.shape) for key, tensor in weights.items()}
    zero = fs.state_dict(nothing, name="zero")
    terms = [zero + 0.7 * fs.adapter(str(file), name=f"adapter_{i}") for i, file in enumerate(files, 1)]
    expected = fs.load_state_dict(method(zero, *terms), layout="bfl", dtype="fp32")
    found = fs.load_state_dict(zero + fs.adapter(str(tmp_path / "out.safetensors")), layout="bfl", dtype="fp32")
    agree(found, expected, 1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.safetensors", "1.safetensors", "out.safetensors"]


@pytest.mark.parametrize(
    "words,code",
    [
        (["-w", 1, "-w", 2, "-w", 3], "usage.weights"),
        (["--method", "svd"], "usage.rank-rule"),
        (["--method", "tiess"], "recipe.unknown-method"),
        (["--option", "density=0.5"], "usage.option"),
        (["--method", "ties", "--option", "density"], "usage.option"),
        (["--dialect", "nobody"], "usage.unknown-dialect"),
    ],
)
def test_wrong_words_are_refused(words: list[object], code: str, weights: Weights, tmp_path: Path) -> None:
    file = saved(lora(weights), tmp_path / "a.safetensors")
    run = run_cli("adapter", "merge", file, file, "-o", tmp_path / "out.safetensors", *words)
    assert f"error[{code}" in run.err, run.err
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("words", [[], ["--method", "task_arithmetic", "--energy", 1]], ids=["sum", "method"])
def test_what_reads_weights_needs_the_base(words: list[object], tiny: TinyCheckpoints, weights: Weights, tmp_path: Path) -> None:
    """A DoRA and a LoRA: refused without the model, with it the sum of what both add to it."""
    dora = lycoris(weights, "locon", 2, dora_wd=True)
    files = [saved(dora, tmp_path / "dora.safetensors"), saved(lora(weights), tmp_path / "lora.safetensors")]
    out = tmp_path / "out.safetensors"
    refused = run_cli("adapter", "merge", *files, "-o", out, "-w", 0.5, *words)
    assert refused.code == 4, refused.err
    assert not out.exists()
    merge(out, *files, "-w", 0.5, "--base", tiny.a, "--dtype", "fp32", *words)
    base = fs.model(str(tiny.a), name="base")
    both = [delta(base + fs.adapter(str(file), name="x"), tiny.a) for file in files]
    expected = {key: 0.5 * (both[0][key] + both[1][key]) for key in both[0]}
    agree(delta(applied(tiny.a, (1.0, out)), tiny.a), expected, 1e-5)
