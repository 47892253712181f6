"""OneTrainer's four: legacy names joined by `_`, BFL names in parts, ORIGINAL without a prefix, COMFY."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters.containers import Container, Numbers, Split, agree, deltas_of, factors, opened, split_stems
from fluxsmith.adapters.reading.opening import open_adapter
from fluxsmith.errors import IncompatibleError
from fluxsmith.io.opening import open_checkpoint
from fluxsmith.layouts import Bound

Weights = dict[str, Tensor]


def place(container: Container, weights: Weights, split: Split, delta: Tensor) -> None:
    """Put a delta of one of diffusers' layers where it belongs in the canonical tensor."""
    name = f"{split.stem}.weight"
    if split.swapped:
        scale, shift = delta.chunk(2)
        delta = torch.cat([shift, scale])
    container.add(name, delta, tuple(weights[name].shape), split.at)


def trained(split: Split, weights: Weights) -> Tensor:
    """The weight of one of diffusers' layers."""
    weight = weights[f"{split.stem}.weight"].float()
    if split.swapped:
        shift, scale = weight.chunk(2)
        weight = torch.cat([scale, shift])
    return weight[split.at : split.at + split.shape[0]]


def legacy(weights: Weights, *, dora: bool = False) -> Container:
    """Every linear layer of diffusers; with `dora` a magnitude per column, W' = m V / |V|, V = W + s up down."""
    numbers, container = Numbers.seeded(1), Container()
    for name, split in split_stems().items():
        down, up = factors(numbers, split.shape)
        alpha = numbers.alpha(len(down))
        key = "lora_transformer_" + name.replace(".", "_")
        container.tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": alpha}
        delta = float(alpha) / len(down) * up @ down
        if dora:
            magnitude = numbers.normal(1, split.shape[1]).abs() + 0.1
            container.tensors[f"{key}.dora_scale"] = magnitude
            weight = trained(split, weights)
            moved = weight + delta
            delta = magnitude * moved / moved.norm(dim=0, keepdim=True) - weight
        place(container, weights, split, delta)
    return container


def test_legacy(tmp_path: Path, base: Bound, weights: Weights) -> None:
    container = legacy(weights)
    adapter = opened(container, tmp_path, base)
    assert (adapter.dialect, adapter.score, len(adapter.modules)) == ("onetrainer", 1.0, len(split_stems()))
    agree(deltas_of(adapter, weights), container.deltas)


def test_legacy_without_a_base(tmp_path: Path, weights: Weights) -> None:
    container = legacy(weights)
    adapter = opened(container, tmp_path, None)
    assert (adapter.dialect, adapter.family) == ("onetrainer", "flux1")
    agree(deltas_of(adapter, weights), container.deltas)


def test_magnitudes_per_column_are_applied_in_the_layout_of_training(tmp_path: Path, base: Bound, weights: Weights) -> None:
    """Fused and split differ: the norms of a column are those of q, k and v each."""
    container = legacy(weights, dora=True)
    adapter = opened(container, tmp_path, base)
    agree(deltas_of(adapter, weights), container.deltas, 1e-4)


def test_a_magnitude_of_the_wrong_layout_is_refused(tmp_path: Path, base: Bound, weights: Weights) -> None:
    """linear2's columns are 240; a magnitude of 48 is that of another layer."""
    container = legacy(weights, dora=True)
    key = "lora_transformer_single_transformer_blocks_0_proj_out.dora_scale"
    container.tensors[key] = container.tensors[key][:, :48]
    with pytest.raises(IncompatibleError) as caught:
        opened(container, tmp_path, base)
    assert caught.value.code in ("adapter.rank-mismatch", "adapter.wrong-width")
    assert "single_transformer_blocks_0_proj_out" in str(caught.value)


def test_text_encoders_and_bundled_embeddings(tmp_path: Path, weights: Weights) -> None:
    """te2 is T5 here; embeddings are left out by a rule that is named."""
    container, numbers, expected = legacy(weights), Numbers.seeded(3), Container()
    shapes = {
        "lora_te1_text_model_encoder_layers_0_self_attn_out_proj": ("clip_l.text_model.encoder.layers.0.self_attn.out_proj", (8, 8)),
        "lora_te2_encoder_block_0_layer_1_DenseReluDense_wo": ("t5.encoder.block.0.layer.1.DenseReluDense.wo", (16, 40)),
    }
    for key, (stem, shape) in shapes.items():
        down, up = factors(numbers, shape)
        container.tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
        expected.add(f"{stem}.weight", up @ down / len(down), shape)
    container.tensors |= {"bundle_emb.mycat.clip_l": numbers.normal(2, 8), "bundle_emb.mycat.t5": numbers.normal(2, 16)}
    adapter = opened(container, tmp_path, None)
    assert set(adapter.components) == {"transformer", "clip_l", "t5"}
    assert set(adapter.dropped) == {"bundle_emb.mycat.clip_l", "bundle_emb.mycat.t5"}
    assert adapter.score == 1.0
    assert adapter.notes == ("2 keys left out: a textual inversion bundled with the adapter, which changes no weight",)
    placed = {name: torch.zeros(delta.shape) for name, delta in expected.deltas.items()}
    agree(deltas_of(adapter, weights | placed), container.deltas | expected.deltas)


PARTS = {"to_q": 0, "to_k": 1, "to_v": 2, "add_q_proj": 0, "add_k_proj": 1, "add_v_proj": 2, "proj_mlp": 3}


def bfl_in_parts(weights: Weights) -> Container:
    """The same layers under BFL names with a number for each part, and `img_in.proj`; the last layer as BFL has it."""
    numbers, container = Numbers.seeded(2), Container()
    for name, split in split_stems().items():
        down, up = factors(numbers, split.shape)
        alpha = numbers.alpha(len(down))
        part = PARTS.get(name.rpartition(".")[2])
        key = f"transformer.{split.stem}" + ("" if part is None else f".{part}") + (".proj" if split.stem == "img_in" else "")
        container.tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": alpha}
        shape = tuple(weights[f"{split.stem}.weight"].shape)
        container.add(f"{split.stem}.weight", float(alpha) / len(down) * up @ down, shape, split.at)
    return container


def test_bfl_names_in_parts(tmp_path: Path, base: Bound, weights: Weights) -> None:
    container = bfl_in_parts(weights)
    assert {"transformer.single_blocks.0.linear1.3.alpha", "transformer.img_in.proj.alpha"} <= set(container.tensors)
    for model in (base, None):
        adapter = opened(container, tmp_path, model)
        assert (adapter.dialect, adapter.score) == ("onetrainer-bfl", 1.0)
        agree(deltas_of(adapter, weights), container.deltas)


def test_a_part_that_there_is_not_is_refused(tmp_path: Path, base: Bound, weights: Weights) -> None:
    container = bfl_in_parts(weights)
    for role in ("lora_down.weight", "lora_up.weight"):
        container.tensors[f"transformer.double_blocks.0.img_attn.qkv.3.{role}"] = torch.ones(2, 2)
    with pytest.raises(IncompatibleError, match=r"adapter\.unmatched-keys") as caught:
        opened(container, tmp_path, base)
    assert "transformer.double_blocks.0.img_attn.qkv.3.lora_down.weight" in str(caught.value)


@pytest.mark.parametrize(("prefix", "dialect"), [("", "original"), ("diffusion_model.", "comfy")])
def test_original_names_fused(prefix: str, dialect: str, tmp_path: Path, base: Bound, weights: Weights) -> None:
    """lora_A and lora_B with alpha and dora_scale [1, in], over the fused weight."""
    numbers, container = Numbers.seeded(4), Container()
    for index, (name, stored) in enumerate((n, w) for n, w in weights.items() if w.ndim == 2):
        down, up = factors(numbers, tuple(stored.shape))
        alpha, key = numbers.alpha(len(down)), prefix + name.removesuffix(".weight")
        container.tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up, f"{key}.alpha": alpha}
        weight = stored.float()
        delta = float(alpha) / len(down) * up @ down
        if index % 2:
            magnitude = numbers.normal(1, weight.shape[1]).abs() + 0.1
            container.tensors[f"{key}.dora_scale"] = magnitude
            moved = weight + delta
            delta = magnitude * moved / moved.norm(dim=0, keepdim=True) - weight
        container.add(name, delta, tuple(weight.shape))
    adapter = opened(container, tmp_path, base)
    assert (adapter.dialect, adapter.score) == (dialect, 1.0)
    agree(deltas_of(adapter, weights), container.deltas, 1e-4)


def test_te2_is_t5_only_by_its_names(tmp_path: Path, base: Bound, weights: Weights) -> None:
    """With a base that has the transformer alone the text encoder's keys are an error that names them."""
    container = legacy(weights)
    down, up = torch.ones(2, 16), torch.ones(40, 2)
    key = "lora_te2_encoder_block_0_layer_1_DenseReluDense_wi_0"
    container.tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
    with pytest.raises(IncompatibleError, match=r"adapter\.unmatched-keys") as caught:
        opened(container, tmp_path, base)
    text = str(caught.value)
    assert key in text and "2 t5" in text and "components: [transformer]" in text
    kept = open_adapter(open_checkpoint(tmp_path / "adapter.safetensors"), base=base, components=["transformer"])
    assert set(kept.dropped.values()) == {"components: [transformer]"}
