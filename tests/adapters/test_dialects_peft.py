"""Adapters of PEFT, diffusers, ai-toolkit and LyCORIS around a tiny FLUX.1: every key is used, every delta is the producer's."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeArgument=false, reportArgumentType=false, reportAttributeAccessIssue=false
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.peft_containers import Made, canonical, deltas_of, peft_folder
from fluxsmith.adapters.opening import open_adapter
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
    expected = canonical(diffusers_base.spec, "diffusers", made.deltas)
    found = deltas_of(adapter, diffusers_base, weights)
    assert found.keys() == expected.keys()
    for tensor, delta in expected.items():
        assert torch.linalg.vector_norm(found[tensor] - delta) <= 1e-6 * torch.linalg.vector_norm(delta), tensor
