"""Converted adapters in the stock loaders: diffusers, PEFT and LyCORIS merge what the source's own producer merges."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeArgument=false, reportAttributeAccessIssue=false, reportArgumentType=false, reportPrivateUsage=false, reportCallIssue=false
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.containers import Container, agree, bfl_tree, lycoris, opened
from adapters.peft_containers import canonical
from adapters.test_dialects_kohya import lora
from fluxsmith.adapters.converting.files import convert
from fluxsmith.adapters.dialects import DIALECTS
from fluxsmith.adapters.module import Adapter
from fluxsmith.layouts import Bound
from support.tiny_flux import make_transformer

Weights = dict[str, Tensor]


@pytest.fixture
def model() -> Any:
    """The model of which `base` is the checkpoint, in fp64 so that differences of merged weights are deltas."""
    return make_transformer(1).double()


@pytest.fixture
def style(tmp_path: Path, base: Bound, weights: Weights) -> tuple[Adapter, Container]:
    """kohya's LoRA of every linear layer, each with its own rank and alpha, and what it adds."""
    container = lora(weights)
    return opened(container, tmp_path, base), container


def before(model: Any) -> dict[str, Tensor]:
    return {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}


def added(base: Bound, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a stock model gained, by canonical tensors."""
    new = {key.replace(".base_layer.", "."): tensor for key, tensor in new.items() if ".lora_" not in key}
    changed = {key: new[key] - tensor for key, tensor in old.items() if not torch.equal(new[key], tensor)}
    return {name: delta.float() for name, delta in canonical(base.spec, "diffusers", changed).items()}


def test_diffusers_transformer(model: Any, style: tuple[Adapter, Container], base: Bound, tmp_path: Path) -> None:
    """`FluxTransformer2DModel.load_lora_adapter` reads ranks and alphas of all modules out of our header, and merges."""
    adapter, container = style
    old = before(model)
    convert(adapter, tmp_path / "d.safetensors", DIALECTS["diffusers"])
    model.load_lora_adapter(str(tmp_path), weight_name="d.safetensors", prefix="transformer")
    model.fuse_lora()
    agree(added(base, old, model.state_dict()), container.deltas, 1e-5)


def test_diffusers_pipeline(model: Any, style: tuple[Adapter, Container], base: Bound, tmp_path: Path) -> None:
    """The same through the pipeline's loader, and its answer to an image equals that of base + delta."""
    from diffusers import FluxPipeline

    adapter, container = style
    old = before(model)
    convert(adapter, tmp_path / "d.safetensors", DIALECTS["diffusers"])
    state, alphas, metadata = FluxPipeline.lora_state_dict(str(tmp_path / "d.safetensors"), return_alphas=True, return_lora_metadata=True)
    FluxPipeline.load_lora_into_transformer(state, alphas, model, metadata=metadata)
    answer = forward(model)
    model.fuse_lora()
    agree(added(base, old, model.state_dict()), container.deltas, 1e-5)
    merged = make_transformer(1).double()
    merged.load_state_dict({k.replace(".base_layer.", "."): v for k, v in model.state_dict().items() if ".lora_" not in k})
    assert torch.allclose(answer, forward(merged), atol=1e-9)


def forward(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(3)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).double()

    with torch.no_grad():
        return model(
            hidden_states=noise(1, 4, 16), encoder_hidden_states=noise(1, 3, 32), pooled_projections=noise(1, 24),
            timestep=torch.tensor([0.5]).double(), guidance=torch.tensor([3.5]).double(),
            img_ids=torch.zeros(4, 3), txt_ids=torch.zeros(3, 3),
        ).sample  # fmt: skip


@pytest.mark.parametrize(("algo", "options"), [("lora", {}), ("lora", {"dora_wd": True}), ("loha", {})], ids=["lora", "dora", "loha"])
def test_peft(algo: str, options: dict[str, Any], model: Any, base: Bound, weights: Weights, tmp_path: Path) -> None:
    """`PeftModel.from_pretrained` on our folder: LyCORIS' LoRA, DoRA and LoHa of fused tensors, in split ones."""
    from peft import PeftModel

    container = lycoris(weights, algo, 5, **options)
    old = before(model)
    convert(opened(container, tmp_path, base), tmp_path / "peft", DIALECTS["peft"])
    merged = PeftModel.from_pretrained(model, tmp_path / "peft").merge_and_unload()
    agree(added(base, old, merged.state_dict()), container.deltas, 1e-5)


def test_top_level_names_that_end_as_blocks_do(model: Any, base: Bound, weights: Weights, tmp_path: Path) -> None:
    """`proj_out` alone, which PEFT would look for in every block, and `proj_out` of another rank than the blocks'."""
    everything = lora(weights)
    for keep in (("final_layer_linear",), ("final_layer_linear", "linear2")):
        fresh = make_transformer(1).double()
        old = before(fresh)
        tensors = {key: tensor for key, tensor in everything.tensors.items() if key.partition(".")[0].endswith(keep)}
        stems = {key.partition(".")[0].removeprefix("lora_unet_") for key in tensors}
        deltas = {name: d for name, d in everything.deltas.items() if name.removesuffix(".weight").replace(".", "_") in stems}
        part = Container(tensors, deltas)
        folder = tmp_path / str(len(keep))
        folder.mkdir()
        convert(opened(part, folder, base), folder / "d.safetensors", DIALECTS["diffusers"])
        fresh.load_lora_adapter(str(folder), weight_name="d.safetensors", prefix="transformer")
        fresh.fuse_lora()
        assert sum("lora_A" in key for key in fresh.state_dict()) == len(deltas)
        agree(added(base, old, fresh.state_dict()), deltas, 1e-5)


def test_xlabs_through_diffusers(model: Any, base: Bound, weights: Weights, tmp_path: Path) -> None:
    """diffusers' own converter of XLabs' files, right for both kinds of block; a scale has gone into the factors."""
    from diffusers import FluxPipeline

    everything = lora(weights)
    ends = ("img_attn_qkv", "img_attn_proj", "txt_attn_qkv", "txt_attn_proj", "linear2")
    tensors = {key: tensor for key, tensor in everything.tensors.items() if key.partition(".")[0].endswith(ends)}
    stems = {key.partition(".")[0].removeprefix("lora_unet_") for key in tensors}
    deltas = {name: d for name, d in everything.deltas.items() if name.removesuffix(".weight").replace(".", "_") in stems}
    old = before(model)
    convert(opened(Container(tensors, deltas), tmp_path, base), tmp_path / "x.safetensors", DIALECTS["xlabs"])
    state, alphas = FluxPipeline.lora_state_dict(str(tmp_path / "x.safetensors"), return_alphas=True)
    FluxPipeline.load_lora_into_transformer(state, alphas, model)
    model.fuse_lora()
    agree(added(base, old, model.state_dict()), deltas, 1e-5)


@pytest.mark.parametrize("name", ["peft lora", "peft dora", "peft loha", "peft full lokr", "peft lokr", "peft oft"])
def test_kohya_through_lycoris(name: str, base: Bound, weights: Weights, tmp_path: Path) -> None:
    """PEFT's adapters of split tensors, converted to kohya's fused ones: the modules that LyCORIS makes of our file add the
    same; what has no exact form there has become a difference."""
    from lycoris import kohya

    from adapters.test_dialects_peft import CONTAINERS
    from fluxsmith.adapters.reading.opening import open_adapter
    from fluxsmith.io.references import open_reference

    made = CONTAINERS[name][1](tmp_path)
    adapter = open_adapter(open_reference(str(made.path), download=False), base=base)
    convert(adapter, tmp_path / "k.safetensors", DIALECTS["kohya"], base=base)
    expected = {n: d.float() for n, d in canonical(base.spec, "diffusers", made.deltas).items()}
    tree = bfl_tree(weights)
    network, _ = kohya.create_network_from_weights(1.0, str(tmp_path / "k.safetensors"), None, [], tree)
    stems = {n.replace(".", "_"): n for n, _ in tree.named_modules()}
    found: dict[str, Tensor] = {}
    for module in network.unet_loras:
        stem = stems[module.lora_name.removeprefix("lora_unet_")]
        weight, bias = weights[f"{stem}.weight"].float(), weights[f"{stem}.bias"].float()
        with torch.no_grad():
            zero = module(torch.zeros(1, weight.shape[1]))
            found[f"{stem}.weight"] = (module(torch.eye(weight.shape[1])) - zero).T - weight
            if (zero[0] - bias).abs().max() > 1e-6:
                found[f"{stem}.bias"] = zero[0] - bias
    agree(found, expected, 1e-4)
