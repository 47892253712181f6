"""kohya's files: LoRA in every module, LyCORIS' algorithms, text encoders, split_qkv, OFT; Stable Diffusion's names."""

# pyright: reportPrivateUsage=false
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters.containers import Container, H, M, Numbers, agree, deltas_of, factors, lycoris, opened
from fluxsmith.layouts import Bound

Weights = dict[str, Tensor]


def lora(weights: Weights, *, seed: int = 1) -> Container:
    """sd-scripts' LoRA of all linear layers with its `in_dims`; every sixth module has no alpha, which then is its rank."""
    numbers, container = Numbers.seeded(seed), Container()
    for index, (name, weight) in enumerate((n, w) for n, w in weights.items() if w.ndim == 2):
        down, up = factors(numbers, tuple(weight.shape))
        key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        container.tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        scale = 1.0
        if index % 6:
            alpha = numbers.alpha(len(down))
            container.tensors[f"{key}.alpha"] = alpha
            scale = float(alpha) / len(down)
        container.add(name, scale * up @ down, tuple(weight.shape))
    return container


def test_lora_in_every_module(tmp_path: Path, base: Bound, weights: Weights) -> None:
    container = lora(weights)
    assert {f"lora_unet_{name}.lora_up.weight" for name in ("img_in", "time_in_in_layer", "final_layer_adaLN_modulation_1")} <= set(
        container.tensors
    )
    adapter = opened(container, tmp_path, base)
    assert (adapter.dialect, adapter.family, adapter.score, adapter.notes) == ("kohya", "flux1", 1.0, ())
    agree(deltas_of(adapter, weights), container.deltas)


def test_norms_and_biases(tmp_path: Path, base: Bound, weights: Weights) -> None:
    """Differences of norms, and a bias beside a LoRA, which has no part in its scale."""
    numbers, container = Numbers.seeded(6), Container()
    norm = "double_blocks.0.img_attn.norm.query_norm.scale"
    for name, key in ((norm, "w_norm"), (norm.replace("query", "key"), "diff"), ("single_blocks.1.linear2.bias", "diff_b")):
        delta = numbers.normal(*weights[name].shape)
        container.tensors[f"lora_unet_{name.rpartition('.')[0].replace('.', '_')}.{key}"] = delta
        container.add(name, delta, tuple(delta.shape))
    down, up = factors(numbers, (H, H + M))
    key = "lora_unet_single_blocks_1_linear2"
    container.tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(0.5)}
    container.add("single_blocks.1.linear2.weight", 0.5 / len(down) * up @ down, (H, H + M))
    agree(deltas_of(opened(container, tmp_path, base), weights), container.deltas)


def test_family_and_widths_are_told_without_a_base(tmp_path: Path, weights: Weights) -> None:
    container = lora(weights)
    adapter = opened(container, tmp_path, None)
    assert adapter.family == "flux1"
    agree(deltas_of(adapter, weights), container.deltas)


ALGORITHMS_OF_LYCORIS = [
    ("lora", {}),
    ("loha", {}),
    ("lokr", {"factor": 4}),
    ("lokr", {"full_matrix": True}),
    ("full", {}),
    ("diag-oft", {}),
    ("ia3", {}),
    ("glora", {}),
    ("lora", {"dora_wd": True}),
    ("lora", {"dora_wd": True, "wd_on_output": False}),
]


@pytest.mark.parametrize(("algo", "options"), ALGORITHMS_OF_LYCORIS, ids=lambda value: value if isinstance(value, str) else "-".join(value))
def test_lycoris(algo: str, options: dict[str, object], tmp_path: Path, base: Bound, weights: Weights) -> None:
    container = lycoris(weights, algo, 2, **options)
    adapter = opened(container, tmp_path, base)
    assert (adapter.dialect, adapter.score) == ("kohya", 1.0)
    assert len(container.deltas) >= 26
    agree(deltas_of(adapter, weights), container.deltas, 1e-5)


def test_text_encoders(tmp_path: Path, weights: Weights) -> None:
    """te1 is CLIP-L and te3 is T5; without a base the sizes are those of the adapter."""
    container, numbers, expected = lora(weights), Numbers.seeded(3), Container()
    shapes = {
        "lora_te1_text_model_encoder_layers_1_self_attn_q_proj": ("clip_l", "text_model.encoder.layers.1.self_attn.q_proj", (8, 8)),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": ("clip_l", "text_model.encoder.layers.0.mlp.fc1", (32, 8)),
        "lora_te3_encoder_block_0_layer_0_SelfAttention_o": ("t5", "encoder.block.0.layer.0.SelfAttention.o", (16, 12)),
        "lora_te3_encoder_block_1_layer_1_DenseReluDense_wi_0": ("t5", "encoder.block.1.layer.1.DenseReluDense.wi_0", (40, 16)),
    }
    for key, (component, stem, shape) in shapes.items():
        down, up = factors(numbers, shape)
        alpha = numbers.alpha(len(down))
        container.tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": alpha}
        expected.add(f"{component}.{stem}.weight", float(alpha) / len(down) * up @ down, shape)
    adapter = opened(container, tmp_path, None)
    assert set(adapter.components) == {"transformer", "clip_l", "t5"}
    placed = {name: torch.zeros(delta.shape) for name, delta in expected.deltas.items()}
    agree(deltas_of(adapter, weights | placed), container.deltas | expected.deltas)


def split_qkv(weights: Weights, *, joint: bool = False) -> Container:
    """sd-scripts' `split_qkv`: downs stacked, ups on a diagonal, alpha that of one part; `joint` fills the ups."""
    numbers, container = Numbers.seeded(4), Container()
    for name, parts in (("double_blocks.0.img_attn.qkv", 3), ("double_blocks.1.txt_attn.qkv", 3), ("single_blocks.2.linear1", 4)):
        sizes, rank = [H, H, H, M][:parts], numbers.rank()
        down = numbers.normal(parts * rank, H)
        up = torch.block_diag(*(numbers.normal(size, rank) for size in sizes))
        up = up + numbers.normal(*up.shape) * joint
        key = "lora_unet_" + name.replace(".", "_")
        container.tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(float(rank + 1))}
        container.add(f"{name}.weight", (rank + 1) / (parts * rank) * up @ down, (sum(sizes), H))
    return container


def test_split_qkv_is_scaled_as_loaders_do_and_noted(tmp_path: Path, base: Bound, weights: Weights) -> None:
    container = split_qkv(weights)
    adapter = opened(container, tmp_path, base)
    agree(deltas_of(adapter, weights), container.deltas)
    (note,) = adapter.notes
    assert "split_qkv" in note and "lora_unet_double_blocks_0_img_attn_qkv (+2)" in note


def test_a_rank_that_can_be_divided_is_no_split_qkv(tmp_path: Path, base: Bound, weights: Weights) -> None:
    assert opened(split_qkv(weights, joint=True), tmp_path, base).notes == ()


def oft(weights: Weights) -> Container:
    """sd-scripts' OFT (networks/oft_flux.py), four blocks in each of q, k, v and the MLP: W' = R^T W of each block."""
    numbers, container, count = Numbers.seeded(5), Container(), 4
    modules = {"double_blocks.0.img_attn.qkv": [H] * 3, "single_blocks.1.linear1": [H, H, H, M], "double_blocks.1.txt_attn.proj": [H]}
    for index, (name, sizes) in enumerate(modules.items()):
        weight, alpha = weights[f"{name}.weight"].float(), (0.01, 1e-3, 0.5)[index]
        key, at, turned = "oft_unet_" + name.replace(".", "_"), 0, []
        container.tensors[f"{key}.alpha"] = torch.tensor(alpha)
        for part, size in enumerate(sizes):
            blocks = 0.3 * numbers.normal(count, size // count, size // count)
            container.tensors[f"{key}.oft_blocks.{part}"] = blocks
            skew = blocks - blocks.mT
            skew = skew * min(1.0, (alpha * size + 1e-8) / (float(skew.norm()) + 1e-8))
            eye = torch.eye(size // count)
            rotation = (eye + skew) @ torch.linalg.inv(eye - skew)
            rows = weight[at : at + size].reshape(count, -1, weight.shape[1])
            turned.append((rotation.mT @ rows).reshape(size, -1))
            at += size
        container.add(f"{name}.weight", torch.cat(turned) - weight, tuple(weight.shape))
    return container


def test_oft_in_parts(tmp_path: Path, base: Bound, weights: Weights) -> None:
    container = oft(weights)
    adapter = opened(container, tmp_path, base)
    assert adapter.dialect == "kohya-oft"
    assert len(adapter.modules) == 8
    agree(deltas_of(adapter, weights), container.deltas, 1e-4)


# Names as they stand in published files.
STABLE_DIFFUSION = [
    (
        "sd15", "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "unet.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    ),
    ("sd15", "lora_te_text_model_encoder_layers_11_self_attn_k_proj", "clip_l.encoder.layers.11.self_attn.k_proj"),
    (
        "sdxl", "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k",
        "unet.input_blocks.4.1.transformer_blocks.1.attn2.to_k",
    ),
    ("sdxl", "lora_te1_text_model_encoder_layers_0_mlp_fc1", "clip_l.encoder.layers.0.mlp.fc1"),
    ("sdxl", "lora_te2_text_model_encoder_layers_31_mlp_fc2", "clip_g.transformer.resblocks.31.mlp.c_proj"),
    ("sd3", "lora_unet_joint_blocks_0_context_block_attn_qkv", "transformer.joint_blocks.0.context_block.attn.qkv"),
    ("sd3", "lora_te3_encoder_block_23_layer_0_SelfAttention_q", "t5.encoder.block.23.layer.0.SelfAttention.q"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "key", "stem"), STABLE_DIFFUSION)
def test_names_of_stable_diffusion(family: str, key: str, stem: str) -> None:
    from fluxsmith.adapters.reading.detection import readings
    from fluxsmith.adapters.targets import Targets, superset
    from fluxsmith.layouts import table_of

    table = table_of(family)
    assert table is not None
    keys = [f"{key}.{role}" for role in ("lora_down.weight", "lora_up.weight", "alpha")]
    best = readings(keys, (table,))[0]
    assert (best.dialect.name, best.score) == ("kohya", 1.0)
    targets = Targets(superset(table, keys), table.prefixes)
    assert {getattr(targets.target(read.place), "tensor", "") for read in best.keys.values()} == {f"{stem}.weight"}
