"""One component of an all-in-one file is merged, and the rest of it is copied as it is stored, byte for byte."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fluxsmith as fs
from fluxsmith.api import as_recipe
from fluxsmith.errors import IncompatibleError, RecipeError
from fluxsmith.recipes.loading import load_recipe, recipe_from_text
from fluxsmith.recipes.saving import recipe_to_text
from support.cli_runs import run_cli
from support.tiny_all_in_one import PLACES, AllInOne, prefixed, save_all_in_one
from support.tiny_flux import TinyCheckpoints, tensors_of

TRANSFORMER = PLACES["transformer"]


@pytest.fixture(scope="module")
def one(tiny: TinyCheckpoints, tmp_path_factory: pytest.TempPathFactory) -> AllInOne:
    """An all-in-one file whose T5 is in scaled fp8."""
    return save_all_in_one(tmp_path_factory.mktemp("one"), tiny.a, scaled=True)


def bytes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {key: (str(t.dtype), tuple(t.shape), t.reshape(-1).view(torch.uint8).numpy().tobytes()) for key, t in tensors.items()}


def beside(tensors: Mapping[str, Tensor], place: str = TRANSFORMER) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(place)}


def expected(one: AllInOne, transformer: Path) -> dict[str, Tensor]:
    """The transformer of one file among everything else of the all-in-one file."""
    return {**prefixed(TRANSFORMER, tensors_of(transformer)), **beside(load_file(one.whole))}


def average(one: AllInOne, tiny: TinyCheckpoints, tmp_path: Path) -> Path:
    """The merge of the two transformers alone."""
    fs.merge(fs.weighted_sum(str(tiny.b), str(tiny.c), alpha=0.3), tmp_path / "alone.safetensors")
    return tmp_path / "alone.safetensors"


def test_the_rest_is_copied_and_the_merge_is_that_of_transformers_alone(one: AllInOne, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    alone = average(one, tiny, tmp_path)
    whole = fs.model(str(one.whole), name="whole")
    merged = fs.merge(fs.weighted_sum(str(tiny.b), str(tiny.c), alpha=0.3), tmp_path / "o.safetensors", rest=whole)
    assert bytes_of(load_file(tmp_path / "o.safetensors")) == bytes_of(expected(one, alone))
    counts = {i.name: dict(i.outcome) for i in merged.plan.inputs}
    stored = load_file(one.whole)
    assert counts["whole"] == {"not used (the merge makes the transformer)": 92, "copied (rest)": len(beside(stored))}
    assert counts["b"] == counts["c"] == {"merged": 92}
    assert merged.plan.layout == "comfy"
    assert merged.outcome.equal_to == set()


def test_an_input_whose_rest_is_copied_need_not_be_read_elsewhere(one: AllInOne, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """A scheme that nothing here reads stands in the encoder, and keys that no table knows: all of it is copied."""
    strange = {
        f"{PLACES['t5']}encoder.block.0.layer.0.SelfAttention.q.qweight": torch.arange(6, dtype=torch.int32),
        "text_encoders.t5xxl.spiece_model": torch.arange(9, dtype=torch.uint8),
        "text_encoders.clip_l.logit_scale": torch.tensor(float("nan")),
        "something.else": torch.ones(0, 3),
    }
    save_file({**load_file(one.whole), **strange}, tmp_path / "strange.safetensors")
    strange_model = fs.model(str(tmp_path / "strange.safetensors"), name="strange")
    merged = fs.merge(fs.weighted_sum(strange_model, str(tiny.b)), tmp_path / "o.safetensors", rest=strange_model)
    fs.merge(fs.weighted_sum(str(tiny.a), str(tiny.b)), tmp_path / "alone.safetensors")
    found = load_file(tmp_path / "o.safetensors")
    assert bytes_of(found) == bytes_of({**expected(one, tmp_path / "alone.safetensors"), **strange})
    counts = dict(merged.plan.inputs[0].outcome)
    assert counts == {"merged": 92, "copied (rest)": len(found) - 92}


def test_a_recipe_says_it_plainly_and_keeps_it(one: AllInOne, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        f"fluxsmith: 1\nmodels:\n  a: {tiny.a}\n  whole: {one.whole}\n"
        "merge:\n  method: weighted_sum\n  inputs: [whole, a]\n  alpha: 0.25\n  components: [transformer]\n  rest: whole\n"
    )
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.components == ("transformer",)
    assert [model.name for model in recipe.rest] == ["whole"]
    again = recipe_from_text(recipe_to_text(recipe), "again")
    assert recipe_to_text(again) == recipe_to_text(recipe)
    fs.merge(recipe, tmp_path / "o.safetensors")
    fs.merge(again, tmp_path / "p.safetensors")
    assert (tmp_path / "o.safetensors").read_bytes() == (tmp_path / "p.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["whole", "file"])
def test_the_command_line_says_it_and_the_file_is_made_again(one: AllInOne, tiny: TinyCheckpoints, tmp_path: Path, name: str) -> None:
    rest = ["-m", f"whole={one.whole}", "--rest", "whole"] if name == "whole" else ["--rest", str(one.whole)]
    wish = ["0.5*b + 0.5*c", "-m", f"b={tiny.b}", "-m", f"c={tiny.c}", *rest]
    assert run_cli("merge", *wish, "-o", str(tmp_path / "o.safetensors")).code == 0
    planned = run_cli("plan", *wish)
    assert "copied (rest)" in planned.out and "the rest of whole" in planned.out
    told = run_cli("explain", *wish[:1], "vae.decoder.conv_in.bias", *wish[1:])
    assert "copied by rest" in told.out and str(one.whole) in told.out
    again = run_cli("reproduce", str(tmp_path / "o.safetensors"), "-o", str(tmp_path / "again.safetensors"))
    assert again.code == 0, again.err
    assert (tmp_path / "o.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_prefixes_of_the_file_are_kept(one: AllInOne, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """An all-in-one file with other prefixes gives one with the same."""
    other = {"model.diffusion_model.": "diffusion_model.", "vae.": "first_stage_model."}
    moved = {
        next((new + key[len(old) :] for old, new in other.items() if key.startswith(old)), key): t
        for key, t in load_file(one.whole).items()
    }
    save_file(moved, tmp_path / "moved.safetensors")
    fs.merge(str(tiny.b), tmp_path / "o.safetensors", rest=str(tmp_path / "moved.safetensors"))
    found = load_file(tmp_path / "o.safetensors")
    assert found.keys() == moved.keys()
    assert bytes_of(found) == bytes_of({**beside(moved, "diffusion_model."), **prefixed("diffusion_model.", tensors_of(tiny.b))})


def test_an_encoder_is_merged_and_the_transformer_copied(one: AllInOne, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """Two of CLIP's own files are merged into an all-in-one file."""
    other = save_all_in_one(tmp_path / "other", tiny.b, seed=7)
    clips = fs.weighted_sum(fs.model(str(one.clip_l), name="one"), fs.model(str(other.clip_l), name="other"))
    fs.merge(clips, tmp_path / "clip.safetensors")
    merged = fs.merge(clips, tmp_path / "o.safetensors", rest=str(one.whole))
    place = PLACES["clip_l"]
    wanted = {**beside(load_file(one.whole), place), **prefixed(place, load_file(tmp_path / "clip.safetensors"))}
    assert bytes_of(load_file(tmp_path / "o.safetensors")) == bytes_of(wanted)
    assert "components:\n  - clip_l" in merged.plan.recipe


def test_a_quantised_transformer_is_replaced_with_its_scales(one: AllInOne, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """Scales of the transformer that the merge makes anew are not left behind; layers that the header describes are followed."""
    scales = {f"{TRANSFORMER}scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn), f"{TRANSFORMER}img_in.scale_weight": torch.ones(())}
    layers = '{"format_version":"1.0","layers":{"model.diffusion_model.img_in":{"format":"a"},"vae.decoder.conv_in":{"format":"b"}}}'
    save_file({**load_file(one.whole), **scales}, tmp_path / "q.safetensors", metadata={"_quantization_metadata": layers})
    fs.merge(str(tiny.b), tmp_path / "o.safetensors", rest=str(tmp_path / "q.safetensors"))
    assert bytes_of(load_file(tmp_path / "o.safetensors")) == bytes_of(expected(one, tiny.b))
    from fluxsmith.io.opening import open_checkpoint

    kept = open_checkpoint(tmp_path / "o.safetensors").metadata["_quantization_metadata"]
    assert kept == '{"format_version":"1.0","layers":{"vae.decoder.conv_in":{"format":"b"}}}'


def test_a_result_in_memory_has_the_rest_too(one: AllInOne, tiny: TinyCheckpoints) -> None:
    found = fs.load_state_dict(str(tiny.b), rest=str(one.whole))
    assert bytes_of(found) == bytes_of(expected(one, tiny.b))


def test_parts_of_fused_tensors_come_to_their_places(one: AllInOne, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """Numbers for q, k and v give each tensor several jobs, which begin in its middle."""
    text = f"fluxsmith: 1\nmodels: {{b: {tiny.b}, c: {tiny.c}, whole: {one.whole}}}\nmerge:\n  method: weighted_sum\n  inputs: [b, c]\n"
    for name, rest in (("alone", ""), ("o", "  rest: whole\n")):
        recipe = text.replace(f", whole: {one.whole}", "") if not rest else text
        (tmp_path / f"{name}.yaml").write_text(f"{recipe}  alpha: {{default: 0.2, q: 0.9, mlp: 0.5}}\n{rest}")
        fs.merge(load_recipe(tmp_path / f"{name}.yaml"), tmp_path / f"{name}.safetensors")
    assert bytes_of(load_file(tmp_path / "o.safetensors")) == bytes_of(expected(one, tmp_path / "alone.safetensors"))


def test_a_quantised_result_has_the_rest_as_it_was(one: AllInOne, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """Scales and marks of the merged transformer lie where they belong among what is copied."""
    fs.merge(str(tiny.comfy), tmp_path / "alone.safetensors", dtype="fp8_scaled")
    fs.merge(str(tiny.comfy), tmp_path / "o.safetensors", dtype="fp8_scaled", rest=str(one.whole))
    wanted = {**load_file(tmp_path / "alone.safetensors"), **beside(load_file(one.whole))}
    assert f"{TRANSFORMER}double_blocks.0.img_mlp.0.scale_weight" in wanted
    assert bytes_of(load_file(tmp_path / "o.safetensors")) == bytes_of(wanted)


def test_what_cannot_be_meant_is_refused(one: AllInOne, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    cases = {
        "rest.other-layout": lambda: fs.plan(str(tiny.b), rest=str(one.whole), layout="diffusers"),
        "rest.no-family": lambda: fs.plan(str(one.clip_l), rest=str(one.t5)),
        "rest.other-names": lambda: fs.plan(str(tiny.b), rest=str(one.vae.with_name("vae-diffusers.safetensors"))),
        "rest.twice": lambda: fs.plan(str(tiny.b), rest=[str(one.whole), str(one.vae)]),
        "recipe.no-contribution": lambda: fs.plan(str(tiny.b), rest=str(tiny.a)),
        "model.no-component": lambda: fs.plan(str(tiny.b), rest=fs.model(str(one.whole), components=["clip_g"])),
        "rest.structural": lambda: fs.plan(replace(as_recipe(str(tiny.b), rest=str(one.whole)), structural=True)),
        "rest.nothing-in-common": lambda: fs.plan(fs.model(str(tiny.b)) | fs.model(str(one.clip_l)), rest=str(one.whole)),
    }
    for code, build in cases.items():
        with pytest.raises((IncompatibleError, RecipeError)) as caught:
            build()
        assert caught.value.code == code
        assert caught.value.fix


def test_a_component_s_own_file_takes_its_place_beside_a_transformer(one: AllInOne, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """As a copy of what is stored, or as an input that a recipe computes with."""
    fs.merge(str(tiny.b), tmp_path / "o.safetensors", rest=[str(one.clip_l), str(one.t5), str(one.vae)])
    assert bytes_of(load_file(tmp_path / "o.safetensors")) == bytes_of(expected(one, tiny.b))
    both = fs.model(str(tiny.sharded), name="folder") | fs.model(str(one.vae.with_name("vae-diffusers.safetensors")), name="vae")
    fs.merge(both, tmp_path / "p.safetensors", layout="comfy")
    wanted = {**prefixed(TRANSFORMER, tensors_of(tiny.a)), **prefixed("vae.", load_file(one.vae))}
    assert bytes_of(load_file(tmp_path / "p.safetensors")) == bytes_of(wanted)
    fs.merge(both, tmp_path / "q.safetensors", components=["transformer", "vae"], rest=str(one.whole))
    assert bytes_of(load_file(tmp_path / "q.safetensors")) == bytes_of(expected(one, tiny.a))
