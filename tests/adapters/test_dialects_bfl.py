"""XLabs' x-flux, Black Forest Labs' control adapters, ComfyUI's names for FLUX.1, FLUX.2 and Chroma."""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportMissingTypeStubs=false, reportUnknownArgumentType=false
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from adapters.containers import Container, H, M, Numbers, agree, deltas_of, factors, opened
from fluxsmith.adapters.reading.detection import looks_like_adapter
from fluxsmith.io.opening import open_checkpoint
from fluxsmith.layouts import Bound, known_tables
from fluxsmith.layouts.detection import open_model
from support.foreign_models import save_foreign

Weights = dict[str, Tensor]


def xlabs(hidden: int = H, mlp: int = M, *, rank: int | None = None) -> Container:
    """x-flux's processors of a double and a single block; no alpha."""
    numbers, container = Numbers.seeded(1), Container()

    def put(key: str, tensor: str, rows: int, cols: int, whole: int) -> None:
        down, up = factors(numbers, (rows, cols)) if rank is None else (numbers.normal(rank, cols), numbers.normal(rows, rank))
        container.tensors |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
        container.add(f"{tensor}.weight", up @ down, (whole, cols))

    for i in range(2):
        for number, stream in (("1", "img"), ("2", "txt")):
            block = f"double_blocks.{i}"
            put(f"{block}.processor.qkv_lora{number}", f"{block}.{stream}_attn.qkv", 3 * hidden, hidden, 3 * hidden)
            put(f"{block}.processor.proj_lora{number}", f"{block}.{stream}_attn.proj", hidden, hidden, hidden)
        put(f"single_blocks.{i}.processor.qkv_lora", f"single_blocks.{i}.linear1", 3 * hidden, hidden, 3 * hidden + mlp)
        put(f"single_blocks.{i}.processor.proj_lora", f"single_blocks.{i}.linear2", hidden, hidden + mlp, hidden)
    return container


def test_xlabs(tmp_path: Path, base: Bound, weights: Weights) -> None:
    container = xlabs()
    for model in (base, None):
        adapter = opened(container, tmp_path, model)
        assert (adapter.dialect, adapter.score, len(adapter.modules)) == ("xlabs", 1.0, 12)
        assert all(module.settings["scale"] == 1.0 for module in adapter.modules)
        agree(deltas_of(adapter, weights), container.deltas)


def products(converted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Module -> delta of a state dict in diffusers' names (its alphas are folded in)."""
    stems = {key.removeprefix("transformer.").removesuffix(".lora_A.weight") for key in converted if key.endswith(".lora_A.weight")}
    return {s: converted[f"transformer.{s}.lora_B.weight"].float() @ converted[f"transformer.{s}.lora_A.weight"].float() for s in stems}


def check_against_diffusers(adapter: Any, converted: dict[str, Tensor], weights: Weights) -> None:
    """Every product of a converted file is the rows that diffusers' module has in our deltas."""
    from adapters.containers import split_stems

    deltas, stems, found = deltas_of(adapter, weights), split_stems(), products(converted)
    assert found
    for name, delta in found.items():
        split = stems[name]
        mine = deltas[f"{split.stem}.weight"][split.at : split.at + len(delta)]
        torch.testing.assert_close(mine, delta, rtol=1e-5, atol=1e-5)


def test_xlabs_as_diffusers_converts_it(tmp_path: Path, base: Bound, weights: Weights) -> None:
    from diffusers.loaders.lora_conversion_utils import _convert_xlabs_flux_lora_to_diffusers

    container = xlabs()
    adapter = opened(container, tmp_path, base)
    check_against_diffusers(adapter, _convert_xlabs_flux_lora_to_diffusers(dict(container.tensors)), weights)


def control(weights: Weights, columns: int = 32) -> Container:
    """A control adapter: every layer with a bias, new norms, and twice the channels in img_in."""
    numbers, container = Numbers.seeded(2), Container()
    for name, weight in weights.items():
        key, _, suffix = name.rpartition(".")
        if weight.ndim == 2:
            wide = (weight.shape[0], columns) if key == "img_in" else tuple(weight.shape)
            down, up = factors(numbers, wide)
            container.tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
            container.add(name, up @ down, wide)
        elif suffix == "bias":
            container.tensors[f"{key}.lora_B.bias"] = numbers.normal(*weight.shape)
            container.add(name, container.tensors[f"{key}.lora_B.bias"], tuple(weight.shape))
        else:
            container.tensors[name] = numbers.normal(*weight.shape)
            container.add(name, container.tensors[name] - weight.float(), tuple(weight.shape))
    return container


def test_control(tmp_path: Path, base: Bound, weights: Weights) -> None:
    container = control(weights)
    adapter = opened(container, tmp_path, base)
    assert (adapter.dialect, adapter.score, len(adapter.modules)) == ("bfl-control", 1.0, len(weights))
    assert adapter.widens == {"img_in.weight": (H, 32)}
    agree(deltas_of(adapter, weights), container.deltas)


def test_control_on_a_model_that_is_wide_enough(tmp_path: Path, base: Bound, weights: Weights) -> None:
    adapter = opened(control(weights, columns=16), tmp_path, base)
    assert adapter.widens == {}


def test_control_as_diffusers_converts_it(tmp_path: Path, base: Bound, weights: Weights) -> None:
    """Double blocks and what stands before them. The converter knows one depth and width (the rest is filled up for it), and
    swaps the last layer's down, too, which is wrong.
    """
    from diffusers.loaders import lora_conversion_utils as conversion

    container = control(weights)
    adapter = opened(container, tmp_path, base)
    filled = dict(container.tensors)
    double = {key: tensor for key, tensor in filled.items() if key.startswith("double_blocks.0.")}
    single = {key: tensor for key, tensor in filled.items() if key.startswith("single_blocks.0.")}
    real = {"lora_B.weight": torch.zeros(7 * 3072, 1), "lora_A.weight": torch.zeros(1, 3072), "lora_B.bias": torch.zeros(7 * 3072)}
    for i in range(38):
        filled |= {key.replace(".0.", f".{i}.", 1): tensor for key, tensor in single.items()}
        filled |= {f"single_blocks.{i}.linear1.{role}": tensor for role, tensor in real.items()}
    for i in range(2, 19):
        filled |= {key.replace(".0.", f".{i}.", 1): tensor for key, tensor in double.items()}
    converted = conversion._convert_bfl_flux_control_lora_to_diffusers(filled)
    ours = (
        "transformer.transformer_blocks.0.",
        "transformer.transformer_blocks.1.",
        "transformer.time",
        "transformer.context",
        "transformer.x_",
    )
    compared = {key: tensor for key, tensor in converted.items() if key.startswith(ours) and "lora_" in key}
    check_against_diffusers(adapter, compared, weights)


def bound(kind: str, folder: Path) -> tuple[Bound, Weights]:
    """A tiny FLUX.2 or Chroma as a base, with its canonical tensors."""
    base = open_model(open_checkpoint(save_foreign(kind, folder / f"{kind}.safetensors")), known_tables())
    generator = torch.Generator().manual_seed(7)
    return base, {name: 0.05 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.spec.items()}


def fused(weights: Weights, prefix: str, *, alpha: bool) -> Container:
    """lora_A and lora_B of every matrix under its canonical name."""
    numbers, container = Numbers.seeded(3), Container()
    for name, weight in weights.items():
        if weight.ndim == 2:
            down, up = factors(numbers, tuple(weight.shape))
            key = prefix + name.removesuffix(".weight")
            container.tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
            scale = 1.0
            if alpha:
                container.tensors[f"{key}.alpha"] = numbers.alpha(len(down))
                scale = float(container.tensors[f"{key}.alpha"]) / len(down)
            container.add(name, scale * up @ down, tuple(weight.shape))
    return container


@pytest.mark.parametrize("kind", ["flux2", "chroma"])
@pytest.mark.parametrize("alpha", [False, True])
def test_flux2_and_chroma(kind: str, alpha: bool, tmp_path: Path) -> None:
    """ai-toolkit's names, whose scale is 1 without an alpha."""
    base, weights = bound(kind, tmp_path)
    container = fused(weights, "diffusion_model.", alpha=alpha)
    adapter = opened(container, tmp_path, base)
    assert (adapter.dialect, adapter.family, adapter.score) == ("comfy", kind, 1.0)
    agree(deltas_of(adapter, weights), container.deltas)
    assert opened(container, tmp_path, None).family == kind


@pytest.mark.parametrize("kind", ["flux2", "chroma"])
def test_kohya_of_flux2_and_chroma(kind: str, tmp_path: Path) -> None:
    base, weights = bound(kind, tmp_path)
    plain = fused(weights, "", alpha=True)
    names = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight", "alpha": "alpha"}

    def renamed(key: str) -> str:
        role = next(role for role in names if key.endswith(f".{role}"))
        return f"lora_unet_{key.removesuffix(f'.{role}').replace('.', '_')}.{names[role]}"

    container = Container({renamed(key): tensor for key, tensor in plain.tensors.items()}, plain.deltas)
    adapter = opened(container, tmp_path, base)
    assert (adapter.dialect, adapter.family) == ("kohya", kind)
    agree(deltas_of(adapter, weights), container.deltas)


def test_flux2_as_diffusers_converts_it(tmp_path: Path) -> None:
    """Blocks, where diffusers' converter is right; all its rows are rows of ours, in the file's order."""
    from diffusers.loaders import lora_conversion_utils as conversion

    base, weights = bound("flux2", tmp_path)
    container = fused(weights, "diffusion_model.", alpha=False)
    blocks = Container({key: t for key, t in container.tensors.items() if "_blocks." in key})
    deltas = deltas_of(opened(blocks, tmp_path, base), weights)
    converted = products(conversion._convert_non_diffusers_flux2_lora_to_diffusers(dict(blocks.tensors)))
    seen = 0
    for name, tensor in base.spec.items():
        pieces = [piece for piece in tensor.pieces["diffusers"] if piece.name.removesuffix(".weight") in converted]
        for piece in pieces:
            seen += 1
            rows = deltas[name][piece.start : piece.start + piece.rows]
            torch.testing.assert_close(rows, converted[piece.name.removesuffix(".weight")], rtol=1e-5, atol=1e-5)
    assert seen == len(converted) > 20


def test_comfy_names_of_diffusers(tmp_path: Path, base: Bound, weights: Weights) -> None:
    """`diffusion_model.transformer_blocks...`, split, beside text encoders' `text_encoders.` keys."""
    from adapters.containers import split_stems

    numbers, container = Numbers.seeded(5), Container()
    for name, split in split_stems().items():
        down, up = factors(numbers, split.shape)
        container.tensors |= {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up}
        delta = torch.cat((up @ down).chunk(2)[::-1]) if split.swapped else up @ down
        container.add(f"{split.stem}.weight", delta, tuple(weights[f"{split.stem}.weight"].shape), split.at)
    adapter = opened(container, tmp_path, base)
    assert (adapter.dialect, adapter.score) == ("comfy", 1.0)
    agree(deltas_of(adapter, weights), container.deltas)


def test_comfy_text_encoders(tmp_path: Path) -> None:
    numbers, container = Numbers.seeded(6), Container()
    for key, stem, shape in (
        ("diffusion_model.double_blocks.0.img_attn.proj", "double_blocks.0.img_attn.proj", (8, 8)),
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc2", "clip_l.text_model.encoder.layers.0.mlp.fc2", (6, 24)),
        ("text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.v", "t5.encoder.block.0.layer.0.SelfAttention.v", (6, 10)),
    ):
        down, up = factors(numbers, shape)
        container.tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
        container.add(f"{stem}.weight", up @ down, shape)
    adapter = opened(container, tmp_path, None)
    assert set(adapter.components) == {"transformer", "clip_l", "t5"}
    agree(deltas_of(adapter, {name: torch.zeros(delta.shape) for name, delta in container.deltas.items()}), container.deltas)


@pytest.mark.parametrize("norm", ["_norm.set_weight", "_norm.scale.set_weight"])
def test_control_in_the_names_of_comfy(norm: str, tmp_path: Path, base: Bound, weights: Weights) -> None:
    """Biases are differences, norms are set, and `reshape_weight`, which says what the factors' widths say, is left out."""
    plain = control(weights)
    tensors = {
        f"diffusion_model.{key.replace('.lora_B.bias', '.diff_b').replace('_norm.scale', norm)}": t for key, t in plain.tensors.items()
    }
    reshape = "diffusion_model.img_in.reshape_weight"
    adapter = opened(Container({**tensors, reshape: torch.tensor([H, 32])}), tmp_path, base)
    assert (adapter.dialect, adapter.score) == ("comfy", 1.0)
    assert adapter.widens == {"img_in.weight": (H, 32)}
    assert list(adapter.dropped) == [reshape]
    agree(deltas_of(adapter, weights), plain.deltas)


@pytest.mark.parametrize("single", [False, True])
def test_kohya_as_diffusers_converts_it(single: bool, tmp_path: Path) -> None:
    """diffusers' converter asserts FLUX.1's real widths: one module of each kind, whose parts must be the rows of ours."""
    from diffusers.loaders import lora_conversion_utils as conversion

    hidden, mlp, numbers = 3072, 12288, Numbers.seeded(8)
    stem = "single_blocks.0.linear1" if single else "double_blocks.0.img_attn.qkv"
    sizes = [hidden] * 3 + [mlp] * single
    names = ["to_q", "to_k", "to_v", "proj_mlp"][: len(sizes)]
    down, up = numbers.normal(4, hidden), numbers.normal(sum(sizes), 4)
    key = "lora_unet_" + stem.replace(".", "_")
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(2.5)}
    save_file(tensors, tmp_path / "adapter.safetensors")
    (module,) = opened(Container(tensors), tmp_path, None).modules
    assert module.target.shape == (sum(sizes), hidden)
    converted = conversion._convert_kohya_flux_lora_to_diffusers(dict(tensors))
    prefix = "transformer.single_transformer_blocks.0." if single else "transformer.transformer_blocks.0."
    at, vector = 0, numbers.normal(hidden)
    for name, size in zip(names, sizes, strict=True):
        assert {(span.at, span.start, span.rows) for span in module.target.spans} == {(0, 0, sum(sizes))}
        theirs = f"{prefix}{'' if name == 'proj_mlp' else 'attn.'}{name}"
        output = converted[f"{theirs}.lora_B.weight"] @ (converted[f"{theirs}.lora_A.weight"] @ vector)
        mine = module.settings["scale"] * up[at : at + size] @ (down @ vector)
        torch.testing.assert_close(mine, output, rtol=1e-4, atol=1e-3)
        at += size


def test_files_of_adapters_are_known_from_checkpoints(tmp_path: Path, base: Bound, weights: Weights) -> None:
    """Also those whose last parts only their dialect understands; no model is taken for one."""
    for keys in (xlabs().tensors, control(weights).tensors, ["oft_unet_single_blocks_1_linear1.oft_blocks.3"]):
        assert looks_like_adapter(keys)
    for keys in (base.checkpoint.tensors, *(bound(kind, tmp_path)[0].checkpoint.tensors for kind in ("flux2", "chroma"))):
        assert not looks_like_adapter(keys)
