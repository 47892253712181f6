"""FLUX.2 and Chroma against the stock diffusers classes and diffusers' own converters."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false, reportUnknownArgumentType=false
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils
from diffusers.models.transformers.transformer_chroma import ChromaTransformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from safetensors.torch import save_file
from torch import Tensor

import fluxsmith as fs
from fluxsmith.errors import IncompatibleError
from fluxsmith.io.opening import open_checkpoint
from fluxsmith.layouts import TABLES, Table, table_of
from fluxsmith.layouts.binding import solve_dims
from fluxsmith.layouts.detection import detect
from fluxsmith.layouts.emission import emit
from fluxsmith.recipes.loading import load_recipe
from support.tiny_flux import tensors_of

TINY_FLUX2: dict[str, Any] = {
    "in_channels": 16, "num_layers": 2, "num_single_layers": 3, "attention_head_dim": 24, "num_attention_heads": 2,
    "joint_attention_dim": 32, "timestep_guidance_channels": 16, "axes_dims_rope": (8, 8, 4, 4),
}  # fmt: skip
TINY_CHROMA: dict[str, Any] = {
    "in_channels": 16, "num_layers": 2, "num_single_layers": 3, "attention_head_dim": 24, "num_attention_heads": 2,
    "joint_attention_dim": 32, "axes_dims_rope": (8, 8, 8), "approximator_num_channels": 12, "approximator_hidden_dim": 20,
    "approximator_layers": 2,
}  # fmt: skip
KLEIN_4B = {
    "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680, "guidance_embeds": False,
}  # fmt: skip
KLEIN_9B = {
    "num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288, "guidance_embeds": False,
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """A model to build; `bfl` and `diffusers` are how many tensors formats.md counts, `nbytes` its bytes in bf16."""

    family: str
    build: Callable[..., torch.nn.Module]
    config: Mapping[str, Any]
    counts: tuple[int, int, int] | None = None

    @property
    def table(self) -> Table:
        table = table_of(self.family)
        assert table is not None
        return table

    def shapes(self) -> dict[str, tuple[int, ...]]:
        with torch.device("meta"):
            return {name: tuple(t.shape) for name, t in self.build(**self.config).state_dict().items()}


SIZES = {
    "flux2 dev": Size("flux2", Flux2Transformer2DModel, {}, (299, 331, 64_446_562_304)),
    "flux2 klein 4B": Size("flux2", Flux2Transformer2DModel, KLEIN_4B, (149, 169, 7_751_089_152)),
    "flux2 klein 9B": Size("flux2", Flux2Transformer2DModel, KLEIN_9B, (201, 233, 18_157_162_496)),
    "flux2 tiny": Size("flux2", Flux2Transformer2DModel, TINY_FLUX2),
    "chroma": Size("chroma", ChromaTransformer2DModel, {}, (643, 1023, 17_799_966_848)),
    "chroma tiny": Size("chroma", ChromaTransformer2DModel, TINY_CHROMA),
}


@pytest.mark.parametrize("name", SIZES)
def test_names_shapes_and_order_are_those_of_diffusers(name: str) -> None:
    """From the shapes of the stock class alone the table finds all dims, and gives back the same tensors in order."""
    size = SIZES[name]
    shapes = size.shapes()
    tensors = size.table.expand(solve_dims(size.table, "diffusers", shapes, name))
    assert [(t.name, t.shape) for t in emit(tensors, "diffusers", size.table)] == list(shapes.items())
    if size.counts:
        bfl, diffusers, nbytes = size.counts
        assert (len(emit(tensors, "bfl", size.table)), len(shapes)) == (bfl, diffusers)
        assert sum(tensor.count for tensor in tensors) * 2 == nbytes


def random_weights(size: Size, seed: int) -> dict[str, Tensor]:
    """Every tensor of the diffusers class, drawn from N(0, 1) in bf16."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(torch.bfloat16) for name, shape in size.shapes().items()}


def save_folder(size: Size, folder: Path, seed: int) -> dict[str, Tensor]:
    """A diffusers folder without config.json."""
    weights = random_weights(size, seed)
    folder.mkdir()
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    return weights


def convert_by_diffusers(family: str, bfl: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """BFL names to diffusers' names by diffusers' own function."""
    if family == "flux2":
        return single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers(dict(bfl))
    # Its width is written into the function: 3072, with an MLP of four times that. Only the split of linear1 needs it.
    width, split = bfl["img_in.weight"].shape[0], torch.split
    hidden = bfl["double_blocks.0.img_mlp.0.weight"].shape[0]
    monkeypatch.setattr(torch, "split", lambda tensor, sizes, dim: split(tensor, [width, width, width, hidden], dim))
    return single_file_utils.convert_chroma_transformer_checkpoint_to_diffusers(dict(bfl))


@pytest.mark.parametrize("name", ["flux2 tiny", "chroma tiny"])
def test_bfl_names_mean_what_diffusers_converter_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = SIZES[name]
    weights = save_folder(size, tmp_path / "d", 1)
    fs.merge(str(tmp_path / "d"), tmp_path / "b.safetensors", layout="bfl")
    converted = convert_by_diffusers(size.family, tensors_of(tmp_path / "b.safetensors"), monkeypatch)
    assert converted.keys() == weights.keys()
    assert all(torch.equal(converted[key], weights[key]) for key in weights)


@pytest.mark.parametrize("name", ["flux2 tiny", "chroma tiny"])
def test_a_merge_over_two_layouts_is_the_average(name: str, tmp_path: Path) -> None:
    """BFL with diffusers, written as diffusers: the stock class loads it with its config, and every value is the mean."""
    size = SIZES[name]
    one, two = (save_folder(size, tmp_path / folder, seed) for folder, seed in (("d1", 1), ("d2", 2)))
    fs.merge(str(tmp_path / "d1"), tmp_path / "b.safetensors", layout="comfy")
    mean = fs.weighted_sum(str(tmp_path / "b.safetensors"), str(tmp_path / "d2"), alpha=0.5)
    plan = fs.plan(mean)
    assert plan.family == size.family
    fs.merge(mean, tmp_path / "out", layout="diffusers", dtype="fp32")
    loaded = size.build.from_pretrained(tmp_path / "out")  # pyright: ignore[reportFunctionMemberAccess]
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, (one[key].float() + two[key].float()) / 2), key


@pytest.mark.parametrize("name", ["flux2 tiny", "chroma tiny"])
def test_selectors_know_blocks_and_parts(name: str, tmp_path: Path) -> None:
    """A number for one block and one for q leave all other tensors as in the first model."""
    size = SIZES[name]
    one, two = (save_folder(size, tmp_path / folder, seed) for folder, seed in (("d1", 1), ("d2", 2)))
    (tmp_path / "r.yaml").write_text(
        f"fluxsmith: 1\nmodels: {{a: {tmp_path}/d1, b: {tmp_path}/d2}}\nmerge:\n  method: weighted_sum\n  inputs: [a, b]\n"
        "  alpha: {default: 0, single.1-2: 1, double.0.q: 1}\n"
    )
    fs.merge(load_recipe(tmp_path / "r.yaml"), tmp_path / "o", layout="diffusers")
    found = tensors_of(tmp_path / "o")
    for key, tensor in found.items():
        second = key.startswith(("single_transformer_blocks.1.", "single_transformer_blocks.2.", "transformer_blocks.0.attn.to_q."))
        second = second or key.startswith("transformer_blocks.0.attn.add_q_proj.")
        assert torch.equal(tensor, (two if second else one)[key]), key


@pytest.mark.parametrize("name", ["flux2 tiny", "chroma tiny"])
@pytest.mark.parametrize("layout", ["bfl", "diffusers", "comfy"])
def test_detection_tells_the_families_apart(name: str, layout: str, tmp_path: Path) -> None:
    size = SIZES[name]
    save_folder(size, tmp_path / "d", 1)
    fs.merge(str(tmp_path / "d"), tmp_path / "o.safetensors", layout=layout)
    candidate = detect(open_checkpoint(tmp_path / "o.safetensors"), TABLES)
    assert candidate is not None
    assert (candidate.table.family, candidate.layout, candidate.score) == (size.family, "bfl" if layout == "comfy" else layout, 1.0)


@pytest.mark.parametrize("name", ["flux2 tiny", "chroma tiny"])
def test_an_incomplete_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    size = SIZES[name]
    weights = random_weights(size, 1)
    absent = "transformer_blocks.1.attn.to_q.weight"
    save_file({key: t for key, t in weights.items() if key != absent}, tmp_path / "m.safetensors")
    with pytest.raises(IncompatibleError) as caught:
        fs.plan(str(tmp_path / "m.safetensors"))
    assert caught.value.code == "model.missing-keys"
    assert absent in caught.value.render()
