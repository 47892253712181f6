"""All-in-one files of FLUX.1 as ComfyUI writes them: transformer, two text encoders and VAE, by sd-mecha's names."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import sd_mecha
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fluxsmith as fs
from fluxsmith.errors import IncompatibleError
from fluxsmith.io.header import TensorEntry, encode_header
from fluxsmith.layouts import FLUX1
from fluxsmith.layouts.emission import emit
from fluxsmith.recipes.loading import load_recipe
from support.tiny_flux import TinyCheckpoints, tensors_of

Shapes = dict[str, tuple[int, ...]]
CLIP, T5 = "text_encoders.clip_l.transformer.", "text_encoders.t5xxl.transformer."
#: Each width of the published text encoders and VAE with that of the small ones.
SMALL = {
    CLIP: {768: 8, 3072: 24, 49408: 20, 77: 7},
    T5: {4096: 16, 10240: 40, 32128: 20, 64: 2},
    "vae.": {128: 4, 256: 8, 512: 12},
}


def published() -> Shapes:
    """Names and shapes of the published all-in-one file."""
    return {key: tuple(meta.shape or ()) for key, meta in sd_mecha.extensions.model_configs.resolve("flux-flux").keys().items()}


def small() -> Shapes:
    """The components beside the transformer with small widths, and two blocks in each text encoder."""
    found: Shapes = {}
    for key, shape in published().items():
        widths = next((widths for prefix, widths in SMALL.items() if key.startswith(prefix)), None)
        block = re.search(r"\.(?:layers|encoder\.block)\.(\d+)\.", key)
        if widths is not None and (block is None or int(block[1]) < 2):
            found[key] = tuple(widths.get(n, n) for n in shape)
    return found


@pytest.fixture(scope="module")
def files(tiny: TinyCheckpoints, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two all-in-one files, whose transformers are the tiny `a` and `b`."""
    root = tmp_path_factory.mktemp("whole")
    paths: list[Path] = []
    for seed, transformer in enumerate((tiny.a, tiny.b)):
        generator = torch.Generator().manual_seed(seed)
        tensors = {f"model.diffusion_model.{key}": tensor for key, tensor in tensors_of(transformer).items()}
        tensors |= {key: torch.randn(shape, generator=generator).to(torch.bfloat16) for key, shape in small().items()}
        save_file(tensors, root / f"{'ab'[seed]}.safetensors")
        paths.append(root / f"{'ab'[seed]}.safetensors")
    return paths[0], paths[1]


Files = tuple[Path, Path]


def beside(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if not key.startswith("model.diffusion_model.")}


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[key]) for key, tensor in a.items())


def sparse(file: Path, shapes: Shapes) -> Path:
    """A file in bf16 whose data are a hole that takes no disk."""
    entries: dict[str, TensorEntry] = {}
    at = 0
    for key, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        entries[key] = TensorEntry("BF16", shape, at, at + size)
        at += size
    with file.open("wb") as stream:
        header = encode_header(entries, {"format": "pt"})
        stream.write(header)
        stream.truncate(len(header) + at)
    return file


def test_a_plan_of_two_published_files_accounts_for_every_key(tmp_path: Path) -> None:
    one, two = (sparse(tmp_path / f"{name}.safetensors", published()) for name in "ab")
    plan = fs.plan(fs.weighted_sum(str(one), str(two)), output=tmp_path / "o.safetensors")
    assert plan.layout == "comfy"
    assert {name: entry.shape for name, entry in plan.files[0].tensors.items()} == published()
    assert [(i.tensors, i.outcome) for i in plan.inputs] == [(1439, {"merged": 1439})] * 2
    written = sum(target.count for job in plan.jobs for target in job.targets)
    assert written == sum(torch.Size(shape).numel() for shape in published().values())


def test_two_files_are_averaged_in_all_components(files: Files, tmp_path: Path) -> None:
    fs.merge(fs.weighted_sum(*map(str, files), alpha=0.5), tmp_path / "o.safetensors", dtype="fp32")
    one, two, found = load_file(files[0]), load_file(files[1]), load_file(tmp_path / "o.safetensors")
    assert found.keys() == one.keys()
    for key, tensor in found.items():
        assert torch.allclose(tensor, (one[key].float() + two[key].float()) / 2, rtol=0, atol=1e-6), key


def test_a_copy_is_the_same_file(files: Files, tmp_path: Path) -> None:
    fs.merge(str(files[0]), tmp_path / "o.safetensors")
    assert equal(load_file(tmp_path / "o.safetensors"), load_file(files[0]))


def test_a_transformer_takes_what_it_lacks_from_a_whole_file(files: Files, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """Whatever the layout of the transformer's own file: the result is an all-in-one file."""
    whole = fs.model(str(files[1]), name="whole")
    for path, layout in ((tiny.a, None), (tiny.comfy, None), (tiny.sharded, "comfy")):
        fs.merge(fs.model(str(path), name="alone") | whole, tmp_path / "o.safetensors", layout=layout, force=True)
        assert equal(load_file(tmp_path / "o.safetensors"), {**tensors_of(tiny.comfy), **beside(load_file(files[1]))})


def test_selectors_name_components_and_their_blocks(files: Files, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        f"fluxsmith: 1\nmodels: {{a: {files[0]}, b: {files[1]}}}\nmerge:\n  method: weighted_sum\n  inputs: [a, b]\n"
        "  alpha: {default: 0, vae: 1, t5.1: 1, clip_l: 1}\n"
    )
    fs.merge(load_recipe(tmp_path / "r.yaml"), tmp_path / "o.safetensors")
    one, two = load_file(files[0]), load_file(files[1])
    second = ("vae.", "text_encoders.clip_l.", f"{T5}encoder.block.1.")
    expected = {key: (two if key.startswith(second) else one)[key] for key in one}
    assert equal(load_file(tmp_path / "o.safetensors"), expected)


@pytest.mark.parametrize("by_recipe", [True, False])
def test_one_component_of_a_file(files: Files, tmp_path: Path, by_recipe: bool) -> None:
    path = str(files[0])
    wish = fs.model(path, name="a", components=["vae"]) if by_recipe else fs.component(path, "vae")
    fs.merge(wish, tmp_path / "o.safetensors")
    assert equal(load_file(tmp_path / "o.safetensors"), {k: t for k, t in load_file(files[0]).items() if k.startswith("vae.")})


@pytest.mark.parametrize("by_recipe", [True, False])
def test_the_transformer_of_a_file_in_other_layouts(files: Files, tiny: TinyCheckpoints, tmp_path: Path, by_recipe: bool) -> None:
    path = str(files[0])
    wish = fs.model(path, name="a", components=["transformer"]) if by_recipe else fs.component(path, "transformer")
    fs.merge(wish, tmp_path / "o.safetensors", layout="bfl")
    assert equal(load_file(tmp_path / "o.safetensors"), tensors_of(tiny.a))
    fs.merge(wish, tmp_path / "folder", layout="diffusers")
    assert equal(tensors_of(tmp_path / "folder"), tensors_of(tiny.sharded))


@pytest.mark.parametrize("layout", ["bfl", "diffusers"])
def test_layouts_without_a_place_for_the_others_are_refused(files: Files, layout: str) -> None:
    with pytest.raises(IncompatibleError) as caught:
        fs.plan(str(files[0]), layout=layout)
    assert caught.value.code == "output.no-component"
    assert "clip_l, t5, vae" in str(caught.value)
    assert "components: [transformer]" in str(caught.value.fix)


def test_what_comfyui_keeps_besides(files: Files, tmp_path: Path) -> None:
    """CLIP's projection is a weight; scales of CLIP's training and second names are left out and counted."""
    more = {
        f"{CLIP}text_projection.weight": torch.ones(8, 8),
        "text_encoders.clip_l.logit_scale": torch.ones(()),
        f"{T5}encoder.embed_tokens.weight": torch.ones(20, 16),
    }
    save_file({**load_file(files[0]), **more}, tmp_path / "a.safetensors")
    plan = fs.merge(str(tmp_path / "a.safetensors"), tmp_path / "o.safetensors").plan
    found = load_file(tmp_path / "o.safetensors")
    assert found.keys() - load_file(files[0]).keys() == {f"{CLIP}text_projection.weight"}
    assert sum(count for reason, count in plan.inputs[0].outcome.items() if reason.startswith("dropped")) == 2
    with pytest.raises(IncompatibleError, match="projections of CLIP"):
        fs.plan(fs.weighted_sum(str(tmp_path / "a.safetensors"), str(files[1])))


def test_an_incomplete_component_is_refused_unless_it_is_not_wanted(files: Files, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    lacking = {key: tensor for key, tensor in load_file(files[0]).items() if key != "vae.decoder.conv_in.bias"}
    save_file(lacking, tmp_path / "a.safetensors")
    with pytest.raises(IncompatibleError, match=r"vae\.decoder\.conv_in\.bias"):
        fs.plan(str(tmp_path / "a.safetensors"))
    fs.merge(fs.model(str(tmp_path / "a.safetensors"), name="a", components=["transformer"]), tmp_path / "o.safetensors")
    assert equal(load_file(tmp_path / "o.safetensors"), tensors_of(tiny.comfy))


def test_the_transformer_alone_needs_no_dims_of_the_others() -> None:
    dims = {"H": 8, "M": 32, "D": 4, "T": 4, "ctx": 8, "vec": 4, "in": 4, "out": 4, "double": 1, "single": 1, "guidance": 0}
    tensors = FLUX1.expand(dims)
    assert {tensor.component for tensor in tensors} == {"transformer"}
    assert all(tensor.name.startswith("model.diffusion_model.") for tensor in emit(tensors, "comfy", FLUX1))
