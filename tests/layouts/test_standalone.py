"""Text encoders and VAEs that are alone in their files are families of their own, named as the components of FLUX.1 are."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fluxsmith as fs
from fluxsmith.errors import IncompatibleError
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.opening import open_checkpoint
from fluxsmith.layouts import Bound, known_tables
from fluxsmith.layouts.detection import open_model
from support.tiny_all_in_one import AllInOne, clip_model, random_state, save_all_in_one
from support.tiny_flux import TinyCheckpoints


@pytest.fixture(scope="module")
def one(tiny: TinyCheckpoints, tmp_path_factory: pytest.TempPathFactory) -> AllInOne:
    return save_all_in_one(tmp_path_factory.mktemp("one"), tiny.a)


def opened(path: Path) -> Bound:
    return open_model(open_checkpoint(path), known_tables())


@pytest.mark.parametrize("name", ["clip_l", "t5", "vae"])
def test_canonical_names_are_those_of_the_component(one: AllInOne, name: str) -> None:
    """The same tensors under the same names as in the all-in-one file, though they are stored elsewhere."""
    alone, whole = opened(one.parts[name]), opened(one.whole).only([name])
    assert alone.family == name
    assert {key: tensor.shape for key, tensor in alone.spec.items()} == {key: tensor.shape for key, tensor in whole.spec.items()}
    assert {key: tensor.block for key, tensor in alone.spec.items()} == {key: tensor.block for key, tensor in whole.spec.items()}
    stored, prefix = whole.checkpoint.tensors, whole.prefixes[name]
    names = {key: next(k for k, view in stored.items() if k.startswith(prefix) and view == whole.views[key]) for key in whole.spec}
    for key, view in alone.views.items():
        assert alone.checkpoint.tensors[names[key].removeprefix(prefix)] == view


def test_a_vae_has_the_same_values_in_both_layouts(one: AllInOne, tmp_path: Path) -> None:
    diffusers = one.vae.with_name("vae-diffusers.safetensors")
    assert (opened(diffusers).layout, opened(one.vae).layout) == ("diffusers", "ldm")
    fs.merge(fs.weighted_sum(fs.model(str(diffusers), name="d"), fs.model(str(one.vae), name="l")), tmp_path / "o.safetensors")
    found = load_file(tmp_path / "o.safetensors")
    assert found.keys() == load_file(diffusers).keys()
    assert all(torch.equal(tensor, found[key]) for key, tensor in load_file(diffusers).items())


def test_two_encoders_are_merged_and_told_apart_by_blocks(one: AllInOne, tmp_path: Path) -> None:
    other = {key: tensor.half() for key, tensor in random_state(clip_model(9)).items()}
    save_file({**other, "text_model.embeddings.position_ids": torch.arange(7)[None]}, tmp_path / "other.safetensors")
    recipe = f"fluxsmith: 1\nmodels: {{a: {one.clip_l}, b: {tmp_path / 'other.safetensors'}}}\nmerge:\n  method: weighted_sum\n"
    (tmp_path / "r.yaml").write_text(recipe + "  inputs: [a, b]\n  alpha: {default: 0, clip_l.1: 1}\n")
    from fluxsmith.recipes.loading import load_recipe

    plan = fs.merge(load_recipe(tmp_path / "r.yaml"), tmp_path / "o.safetensors").plan
    assert dict(plan.inputs[1].outcome)["dropped (position numbers, which loaders make anew)"] == 1
    first, found = load_file(one.clip_l), load_file(tmp_path / "o.safetensors")
    assert all(torch.equal(tensor, (other if "layers.1." in key else first)[key]) for key, tensor in found.items())
    assert found.keys() == first.keys()


def test_clip_as_transformers_5_names_it_is_the_same(one: AllInOne, tmp_path: Path) -> None:
    """Without `text_model.`: read, and written so again."""
    bare = {key.removeprefix("text_model."): tensor for key, tensor in load_file(one.clip_l).items()}
    save_file(bare, tmp_path / "bare.safetensors")
    assert opened(tmp_path / "bare.safetensors").spec.keys() == opened(one.clip_l).spec.keys()
    fs.merge(str(tmp_path / "bare.safetensors"), tmp_path / "o.safetensors")
    assert load_file(tmp_path / "o.safetensors").keys() == bare.keys()
    fs.merge(str(tmp_path / "bare.safetensors"), tmp_path / "p.safetensors", layout="diffusers")
    assert load_file(tmp_path / "p.safetensors").keys() == load_file(one.clip_l).keys()


def test_a_component_in_an_all_in_one_file_takes_that_of_a_file(one: AllInOne, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """As an input: half of one encoder and half of the other."""
    other = save_all_in_one(tmp_path / "other", tiny.b, seed=5)
    whole, clip = fs.model(str(one.whole), name="whole"), fs.model(str(other.clip_l), name="clip")
    fs.merge(fs.weighted_sum(whole, clip), tmp_path / "o.safetensors", components=["clip_l"], dtype="fp32")
    found = load_file(tmp_path / "o.safetensors")
    for key, tensor in load_file(one.clip_l).items():
        expected = (tensor.float() + load_file(other.clip_l)[key].float()) / 2
        assert torch.allclose(found[f"text_encoders.clip_l.transformer.{key}"], expected, atol=1e-6)


def test_what_only_resembles_them_is_merged_as_before(one: AllInOne, tmp_path: Path) -> None:
    """A file with other keys beside, and a folder whose config.json says what it is."""
    beside = {**load_file(one.t5), "decoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(2, 2)}
    save_file({key: tensor.float() for key, tensor in beside.items()}, tmp_path / "t5.safetensors")
    assert opened(tmp_path / "t5.safetensors").family == "structural"
    (tmp_path / "folder").mkdir()
    save_file(load_file(one.clip_l), tmp_path / "folder" / "model.safetensors")
    (tmp_path / "folder" / "config.json").write_text('{"model_type": "clip_text_model"}')
    assert opened(tmp_path / "folder").family == "clip_text_model"


def test_other_kinds_and_sizes_do_not_mix(one: AllInOne, tiny: TinyCheckpoints) -> None:
    def code(first: Path, second: Path) -> str:
        with pytest.raises(IncompatibleError) as caught:
            fs.plan(fs.weighted_sum(fs.model(str(first), name="a"), fs.model(str(second), name="b")))
        return caught.value.code

    assert code(one.clip_l, one.t5) == "model.mixed-families"
    assert code(one.whole, one.clip_l) == "model.missing-tensor"
    assert code(tiny.a, one.vae) == "model.missing-tensor"


def test_published_widths_tell_the_two_clips_apart() -> None:
    """CLIP-L and CLIP-G have the same names; a CLIP of width 1280 is no CLIP-L."""
    from fluxsmith.layouts.ownership import owners_of

    checkpoint = _clip_of_width(1280)
    owners = owners_of(checkpoint)
    assert owners.table is not None
    assert owners.table.family == "clip_g"
    assert owners_of(_clip_of_width(768), ("clip_g",)).places.keys() == {"clip_l"}


def _clip_of_width(width: int) -> Checkpoint:
    from fluxsmith.io.views import View

    names = [*random_state(clip_model(1)), "text_projection.weight"]
    return Checkpoint("clip", (), {name: View((20, width) if "token_embedding" in name else (width,), ()) for name in names})
