"""Every container applied to a model through the engine: in tiles that cut modules anywhere, on a base of either layout,
at a strength that is not one."""

# pyright: reportMissingTypeArgument=false
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fluxsmith as fs
from adapters.containers import Container, agree, lycoris, saved
from adapters.peft_containers import canonical
from adapters.test_dialects_bfl import control, fused, xlabs
from adapters.test_dialects_kohya import ALGORITHMS_OF_LYCORIS, lora, oft, split_qkv
from adapters.test_dialects_onetrainer import bfl_in_parts, legacy
from adapters.test_dialects_peft import CONTAINERS as PEFT
from fluxsmith.engine import memory
from fluxsmith.layouts import Bound
from support.tiny_flux import TinyCheckpoints

Weights = dict[str, Tensor]
STRENGTH = 0.7

KEYED: dict[str, Callable[[Weights], Container]] = {
    "kohya": lora,
    "kohya split_qkv": split_qkv,
    "kohya oft": oft,
    "onetrainer legacy": legacy,
    "onetrainer legacy dora": lambda weights: legacy(weights, dora=True),
    "onetrainer bfl": bfl_in_parts,
    "comfy": lambda weights: fused(weights, "diffusion_model.", alpha=True),
    "original": lambda weights: fused(weights, "", alpha=True),
    "xlabs": lambda weights: xlabs(),
    "bfl control": control,
    **{
        f"lycoris {algo} {' '.join(options)}".strip(): lambda weights, algo=algo, options=options: lycoris(weights, algo, 2, **options)
        for algo, options in ALGORITHMS_OF_LYCORIS
    },
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "TILE", 1 << 11)
    monkeypatch.setattr(memory, "SMALLEST", 1 << 9)


def applied(model: Path, adapter: Path) -> Weights:
    """What the adapter adds at STRENGTH, over all canonical tensors that it changes."""
    base = fs.model(str(model), name="base")
    before = fs.load_state_dict(base, layout="bfl", dtype="fp32")
    after = fs.load_state_dict(base + STRENGTH * fs.adapter(str(adapter), name="adapter"), layout="bfl", dtype="fp32")
    wide = {name: torch.nn.functional.pad(tensor, (0, after[name].shape[-1] - tensor.shape[-1])) for name, tensor in before.items()}
    return {name: tensor - wide[name] for name, tensor in after.items() if not torch.equal(tensor, wide[name])}


@pytest.mark.parametrize("name", KEYED)
def test_files_of_other_programs(name: str, tiny: TinyCheckpoints, weights: Weights, tmp_path: Path) -> None:
    container = KEYED[name](weights)
    file = saved(container, tmp_path / "adapter.safetensors")
    expected = {key: STRENGTH * delta for key, delta in container.deltas.items() if delta.any()}
    for model in (tiny.a, tiny.sharded):
        agree(applied(model, file), expected, 2e-5)


@pytest.mark.parametrize("name", PEFT)
def test_adapters_of_peft_and_its_kin(name: str, tiny: TinyCheckpoints, base: Bound, weights: Weights, tmp_path: Path) -> None:
    made = PEFT[name][1](tmp_path)
    found = applied(tiny.a, made.path)
    layout = "bfl" if "bfl" in name else "diffusers"
    expected = {key: STRENGTH * delta.float() for key, delta in canonical(base.spec, layout, made.deltas).items()}
    agree(found, expected, 2e-5)
