"""The FLUX.1 table against the stock diffusers classes, and against what is known of the published files."""

from pathlib import Path

import pytest

import fluxsmith as fs
from fluxsmith.io.shards import place
from fluxsmith.layouts import FLUX1
from fluxsmith.layouts.emission import emit
from support.tiny_flux import TINY, TinyCheckpoints, make_transformer, save_diffusers, tensors_of

DEV = {"H": 3072, "M": 12288, "D": 128, "T": 256, "ctx": 4096, "vec": 768, "in": 64, "out": 64, "double": 19, "single": 38, "guidance": 1}

# formats.md 1.1: BFL tensors, diffusers tensors, bytes in bf16
KINDS = {
    "schnell": ({"guidance": 0}, 776, 1156, 23_782_357_120),
    "dev": ({}, 780, 1160, 23_802_816_640),
    "fill": ({"in": 384}, 780, 1160, 23_804_782_720),
    "canny": ({"in": 128}, 780, 1160, 23_803_209_856),
    "mini": ({"double": 5, "single": 10}, 220, 320, 6_358_399_104),
    "lite": ({"double": 8}, 516, 808, 16_326_528_128),
}


@pytest.mark.parametrize("kind", KINDS)
def test_counts_of_published_models(kind: str) -> None:
    changes, bfl, diffusers, size = KINDS[kind]
    tensors = FLUX1.expand({**DEV, **changes})
    assert len(emit(tensors, "bfl", FLUX1)) == bfl
    assert len(emit(tensors, "diffusers", FLUX1)) == diffusers
    assert sum(tensor.count for tensor in tensors) * 2 == size


@pytest.mark.parametrize("changes", [{}, {"num_layers": 1, "num_single_layers": 4}, {"guidance_embeds": False}, {"in_channels": 40}])
def test_names_shapes_and_order_are_those_of_diffusers(changes: dict[str, object]) -> None:
    state = make_transformer(0, **changes).state_dict()
    config = {**TINY, **changes}
    dims = {
        "H": 48, "M": 192, "D": 24, "T": 256, "ctx": 32, "vec": 24, "in": config["in_channels"], "out": config["in_channels"],
        "double": config["num_layers"], "single": config["num_single_layers"], "guidance": int(config["guidance_embeds"]),
    }  # fmt: skip
    emitted = emit(FLUX1.expand(dims), "diffusers", FLUX1)
    assert [(tensor.name, tensor.shape) for tensor in emitted] == [(name, tuple(t.shape)) for name, t in state.items()]


def test_shards_are_cut_as_on_the_hub() -> None:
    """The published shards: tensors per file, last names, and sizes to the byte with the Hub's metadata."""
    for guidance, counts, first in ((1, [488, 476, 196], 9_983_040_304), (0, [484, 476, 196], 9_962_580_296)):
        emitted = emit(FLUX1.expand({**DEV, "guidance": guidance}), "diffusers", FLUX1)
        entries = [(tensor.name, "BF16", tensor.shape) for tensor in emitted]
        files = place(entries, stem="diffusion_pytorch_model", shard_size=10_000_000_000, metadata={"format": "pt"})
        assert [len(file.tensors) for file in files] == counts
        assert [file.size for file in files] == [first, 9_949_328_904, 3_870_584_832]
        assert files[0].name == "diffusion_pytorch_model-00001-of-00003.safetensors"
        assert "transformer_blocks.14.attn.to_add_out.bias" in files[0].tensors
        assert "single_transformer_blocks.24.proj_mlp.bias" in files[1].tensors


def test_a_bfl_file_gives_the_same_output_in_diffusers(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """Through stock from_pretrained: not one bit of the output differs from the source model's, in float32."""
    import torch
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    fs.merge(str(tiny.a), tmp_path / "again", layout="diffusers", shard_size="100KB")
    source = make_transformer(1).float()
    again = FluxTransformer2DModel.from_pretrained(tmp_path / "again", torch_dtype=torch.float32)
    generator = torch.Generator().manual_seed(5)
    inputs = {
        "hidden_states": torch.randn(2, 6, 16, generator=generator), "encoder_hidden_states": torch.randn(2, 5, 32, generator=generator),
        "pooled_projections": torch.randn(2, 24, generator=generator), "timestep": torch.tensor([0.3, 0.9]),
        "guidance": torch.tensor([3.5, 1.0]), "img_ids": torch.zeros(6, 3), "txt_ids": torch.zeros(5, 3),
    }  # fmt: skip
    with torch.no_grad():
        assert (source(**inputs).sample - again(**inputs).sample).abs().max() == 0.0


def test_every_layout_reads_back_as_the_same_model(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """BFL -> diffusers -> Comfy -> BFL gives the first file's tensors, bit by bit."""
    import torch

    fs.merge(str(tiny.a), tmp_path / "d", layout="diffusers", shard_size="50KB")
    fs.merge(str(tmp_path / "d"), tmp_path / "c.safetensors", layout="comfy")
    fs.merge(str(tmp_path / "c.safetensors"), tmp_path / "b.safetensors", layout="bfl")
    before, after = tensors_of(tiny.a), tensors_of(tmp_path / "b.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(key.startswith("model.diffusion_model.") for key in tensors_of(tmp_path / "c.safetensors"))


def test_the_halves_of_the_last_modulation_change_places(tiny: TinyCheckpoints) -> None:
    import torch

    bfl, diffusers = tensors_of(tiny.a), tensors_of(tiny.sharded)
    for suffix in ("weight", "bias"):
        shift, scale = bfl[f"final_layer.adaLN_modulation.1.{suffix}"].chunk(2)
        assert torch.equal(diffusers[f"norm_out.linear.{suffix}"], torch.cat([scale, shift]))
        assert not torch.equal(shift, scale)


def test_fused_tensors_of_mixed_types_are_read(tmp_path: Path) -> None:
    """A diffusers checkpoint with q in float32 and k in bf16: fused, every part keeps its value."""
    import torch
    from safetensors.torch import save_file

    folder = save_diffusers(make_transformer(1), tmp_path / "m", shard_size="1GB")
    file = next(folder.glob("*.safetensors"))
    tensors = tensors_of(folder)
    exact = torch.randn(48, 48)
    tensors["transformer_blocks.0.attn.to_q.weight"] = exact
    save_file(tensors, file, metadata={"format": "pt"})
    fs.merge(str(folder), tmp_path / "x.safetensors", layout="bfl")
    fused = tensors_of(tmp_path / "x.safetensors")["double_blocks.0.img_attn.qkv.weight"]
    assert fused.dtype == torch.float32
    assert torch.equal(fused[:48], exact)
    assert torch.equal(fused[48:96], tensors["transformer_blocks.0.attn.to_k.weight"].float())


def test_names_of_recent_comfyui_files_are_read(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    renamed = {key.replace("_norm.scale", "_norm.weight"): t for key, t in tensors_of(tiny.a).items()}
    save_file(renamed, tmp_path / "r.safetensors")
    plan = fs.plan(str(tmp_path / "r.safetensors"))
    assert "double_blocks.0.img_attn.norm.query_norm.scale" in plan.files[0].tensors
