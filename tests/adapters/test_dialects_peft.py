"""Adapters of PEFT, diffusers, ai-toolkit and LyCORIS around a tiny FLUX.1: every key is used, every delta is the producer's."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeArgument=false, reportArgumentType=false, reportAttributeAccessIssue=false
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.containers import bfl_tree
from adapters.peft_containers import (
    Made,
    canonical,
    deltas_of,
    diffusers_model,
    diffusers_pipeline,
    lycoris_file,
    peft_folder,
    raw_peft,
    rename,
)
from fluxsmith.adapters.reading.opening import open_adapter
from fluxsmith.io.references import open_reference
from fluxsmith.layouts import Bound, known_tables
from fluxsmith.layouts.detection import open_model
from support.tiny_flux import TinyCheckpoints, make_transformer

#: Split and fused attention, MLP, modulation, what stands outside of blocks, and the layer whose halves change places.
MODULES = ["attn.to_q", "attn.add_k_proj", "to_out.0", "ff.net.2", "proj_mlp", "proj_out", "x_embedder", "norm1.linear", "norm_out.linear"]


def _peft(kind: str, **fields: Any) -> Callable[[Path], Made]:
    def make(root: Path) -> Made:
        import peft

        config = getattr(peft, f"{kind}Config")(**{"target_modules": MODULES, **fields})
        return peft_folder(make_transformer(1), config, root / "adapter")

    return make


def _raw(root: Path) -> Made:
    from peft import LoraConfig

    return raw_peft(make_transformer(1), LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=MODULES), root / "adapter")


def _pipeline(header: bool = True, **fields: Any) -> Callable[[Path], Made]:
    def make(root: Path) -> Made:
        from peft import LoraConfig

        config = LoraConfig(**{"r": 3, "lora_alpha": 5 if header else 3, "target_modules": MODULES, **fields})
        return diffusers_pipeline(make_transformer(1), config, root / "adapter", header=header)

    return make


def _model(root: Path) -> Made:
    from peft import LoraConfig

    return diffusers_model(make_transformer(1), LoraConfig(r=3, lora_alpha=5, target_modules=MODULES), root / "adapter")


def _old_names(root: Path) -> Made:
    """As diffusers wrote it before PEFT: attention processors, and `lora.down`."""

    def old(key: str) -> str:
        key = re.sub(r"attn\.(to_q|add_k_proj|to_out\.0)\.", r"attn.processor.\1.", key)
        return key.replace("lora_A", "lora.down").replace("lora_B", "lora.up")

    return rename(_pipeline(header=False)(root), old)


def _processors(root: Path) -> Made:
    """The oldest names: `processor.to_q_lora.down.weight`."""

    def old(key: str) -> str:
        key = re.sub(r"\.(to_q|to_out)(?:\.0)?\.lora_A", r".processor.\1_lora.down", key)
        return re.sub(r"\.(to_q|to_out)(?:\.0)?\.lora_B", r".processor.\1_lora.up", key)

    return rename(_pipeline(header=False, target_modules=["attn.to_q", "to_out.0"])(root), old)


def _alphas(root: Path) -> Made:
    """diffusers' rare alphas: half and twice the rank."""
    made = _pipeline(header=False)(root)
    alphas = {name: 1.5 if "single" in name else 6.0 for name in made.deltas}
    deltas = {name: delta * alphas[name] / 3 for name, delta in made.deltas.items()}
    more = {f"transformer.{name.removesuffix('weight')}alpha": torch.tensor(alpha) for name, alpha in alphas.items()}
    return Made(rename(made, str, more=more).path, deltas)


TOOLKIT = {"software": json.dumps({"name": "ai-toolkit", "repo": "https://github.com/ostris/ai-toolkit"}), "format": "pt"}


def _toolkit(root: Path) -> Made:
    return rename(_pipeline(header=False)(root), str, metadata=TOOLKIT)


BLOCKS = ("FluxTransformerBlock", "FluxSingleTransformerBlock")


def _lycoris(dtype: torch.dtype = torch.float32, blocks: Sequence[str] = BLOCKS, **options: Any) -> Callable[[Path], Made]:
    def make(root: Path) -> Made:
        return lycoris_file(make_transformer(1), list(blocks), root / "adapter.safetensors", dtype=dtype, **{**SMALL, **options})

    return make


SMALL = {"linear_dim": 3, "linear_alpha": 5}
WHOLE = {"algo": "lokr", "linear_dim": 10000, "linear_alpha": 1, "factor": 4}


def _toolkit_lokr(root: Path, *, dotted: bool) -> Made:
    """fp16, in which ai-toolkit's alpha of 9999999999 is infinite."""
    made = _lycoris(torch.float16, **WHOLE)(root)
    names = {name.removesuffix(".weight").replace(".", "_"): name.removesuffix(".weight") for name in made.deltas}

    def new(key: str) -> str:
        module, _, role = key.removeprefix("lycoris_").partition(".")
        return f"transformer.{names[module]}.{role}"

    change = new if dotted else str
    stems = [f"lycoris_{name}" for name in names]
    infinite = {change(f"{stem}.alpha"): torch.tensor(9999999999.0).half() for stem in stems}
    assert all(torch.isinf(alpha) for alpha in infinite.values())
    return rename(made, change, more=infinite, metadata=TOOLKIT, dtype=torch.float16)


def _bfl_names(root: Path) -> Made:
    """PEFT around Black Forest Labs' own modules, as Kontext trainers do."""
    from peft import LoraConfig

    tree = bfl_tree(_bfl_weights())
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["qkv", "linear1", "img_in", "adaLN_modulation.1"])
    return peft_folder(tree, config, root / "adapter")


def _bfl_weights() -> dict[str, Tensor]:
    state = make_transformer(1).state_dict()
    fused = {"img_in.weight": state["x_embedder.weight"], "img_in.bias": state["x_embedder.bias"]}
    halves = state["norm_out.linear.weight"].chunk(2)
    fused["final_layer.adaLN_modulation.1.weight"] = torch.cat(halves[::-1])
    for i in range(2):
        parts = [state[f"transformer_blocks.{i}.attn.{name}.weight"] for name in ("to_q", "to_k", "to_v")]
        fused[f"double_blocks.{i}.img_attn.qkv.weight"] = torch.cat(parts)
    for i in range(3):
        names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        fused[f"single_blocks.{i}.linear1.weight"] = torch.cat([state[f"single_transformer_blocks.{i}.{n}.weight"] for n in names])
    return fused


CONTAINERS: dict[str, tuple[str, Callable[[Path], Made]]] = {
    "peft lora": ("peft", _peft("Lora", r=3, lora_alpha=5)),
    "peft rslora": ("peft", _peft("Lora", r=3, lora_alpha=5, use_rslora=True)),
    "peft lora with bias": ("peft", _peft("Lora", r=3, lora_alpha=5, lora_bias=True)),
    "peft dora": ("peft", _peft("Lora", r=3, lora_alpha=5, use_dora=True)),
    "peft patterns": (
        "peft",
        _peft(
            "Lora", r=3, lora_alpha=5, rank_pattern={"to_q": 4, r"^proj_out": 2}, alpha_pattern={"to_q": 7, "x_embedder": 1.5, "norm.*": 9}
        ),
    ),
    "peft trained biases": ("peft", _peft("Lora", r=3, lora_alpha=5, bias="all")),
    "peft trained layers": ("peft", _peft("Lora", r=3, lora_alpha=5, modules_to_save=["context_embedder", "norm_q"])),
    "peft loha": ("peft", _peft("LoHa", r=3, alpha=5, rank_pattern={"to_q": 2})),
    "peft lokr": ("peft", _peft("LoKr", r=2, alpha=5)),
    "peft lokr in two": ("peft", _peft("LoKr", r=2, alpha=5, decompose_both=True, decompose_factor=16)),
    "peft full lokr": ("peft", _peft("LoKr", r=48, alpha=5)),
    "peft oft": ("peft", _peft("OFT", oft_block_size=8)),
    "peft oft terms": ("peft", _peft("OFT", oft_block_size=4, num_cayley_neumann_terms=3)),
    "peft oft exact": ("peft", _peft("OFT", oft_block_size=8, use_cayley_neumann=False)),
    "peft oft shared": ("peft", _peft("OFT", oft_block_size=8, block_share=True)),
    "peft oft constrained": ("peft", _peft("OFT", oft_block_size=8, coft=True, eps=1.0)),
    "peft boft": ("peft", _peft("BOFT", boft_block_size=4)),
    "peft raw names": ("peft", _raw),
    "peft around bfl modules": ("peft", _bfl_names),
    "diffusers": ("diffusers", _pipeline()),
    "diffusers rslora": ("diffusers", _pipeline(use_rslora=True)),
    "diffusers dora": ("diffusers", _pipeline(use_dora=True)),
    "diffusers bias": ("diffusers", _pipeline(lora_bias=True)),
    "diffusers patterns": ("diffusers", _pipeline(rank_pattern={"to_q": 4}, alpha_pattern={"to_q": 7})),
    "diffusers without header": ("diffusers", _pipeline(header=False)),
    "diffusers old names": ("diffusers", _old_names),
    "diffusers processors": ("diffusers", _processors),
    "diffusers alphas": ("diffusers", _alphas),
    "diffusers model": ("diffusers-model", _model),
    "ai-toolkit": ("ai-toolkit", _toolkit),
    "ai-toolkit lokr": ("ai-toolkit", lambda root: _toolkit_lokr(root, dotted=True)),
    "ai-toolkit old lokr": ("lycoris", lambda root: _toolkit_lokr(root, dotted=False)),
    "lycoris lora": ("lycoris", _lycoris(algo="lora")),
    "lycoris loha": ("lycoris", _lycoris(algo="loha")),
    "lycoris lokr": ("lycoris", _lycoris(algo="lokr", factor=4)),
    "lycoris full lokr": ("lycoris", _lycoris(torch.bfloat16, **WHOLE)),
    "lycoris dora": ("lycoris", _lycoris(algo="lora", dora_wd=True)),
    "lycoris dora of columns": ("lycoris", _lycoris(algo="lora", dora_wd=True, wd_on_output=False)),
    "lycoris oft": ("lycoris", _lycoris(algo="diag-oft", constraint=0.01)),
    "lycoris boft": ("lycoris", _lycoris(blocks=["FluxAttention"], algo="boft", linear_dim=6)),
    "lycoris ia3": ("lycoris", _lycoris(algo="ia3")),
    "lycoris glora": ("lycoris", _lycoris(algo="glora")),
    "peft ia3": ("peft", _peft("IA3", feedforward_modules=["proj_out", "ff.net.2"])),
}


@pytest.fixture(scope="module")
def diffusers_base(tiny: TinyCheckpoints) -> Bound:
    """The model that the adapters were made for."""
    return open_model(open_reference(str(tiny.sharded), download=False), known_tables())


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_key_is_used_and_every_delta_is_the_producers(
    name: str, diffusers_base: Bound, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    dialect, make = CONTAINERS[name]
    made = make(tmp_path)
    checkpoint = open_reference(str(made.path), download=False)
    adapter = open_adapter(checkpoint, base=diffusers_base)
    assert adapter.dialect == dialect
    assert sorted(key for module in adapter.modules for key in module.sources) == sorted(checkpoint.tensors)
    assert not adapter.dropped
    layout = "bfl" if "bfl" in name else "diffusers"
    expected = canonical(diffusers_base.spec, layout, made.deltas)
    found = deltas_of(adapter, diffusers_base, weights)
    assert found.keys() == expected.keys()
    for tensor, delta in expected.items():
        assert torch.linalg.vector_norm(found[tensor] - delta) <= 1e-6 * torch.linalg.vector_norm(delta), tensor
