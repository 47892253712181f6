"""Recipe files: what they mean, how they round-trip, and numbers per block."""

from pathlib import Path

import pytest

import fluxsmith as fs
from fluxsmith.engine.plan import Apply, Plan
from fluxsmith.recipes.loading import load_preset, load_recipe, presets, recipe_from_text
from fluxsmith.recipes.saving import recipe_to_text
from support.tiny_flux import TinyCheckpoints, tensors_of

FULL = """\
fluxsmith: 1
title: everything at once
models:
  base: {a}
  one: {b}
  two: {c}
steps:
  soup: {{method: linear, inputs: [one, two]}}
  nudge: "base + 0.3*(soup - base)"
merge:
  method: ties
  base: base
  inputs: [{{model: one, weight: 0.6}}, {{model: nudge, weight: 0.4}}]
  density: {{default: 0.4, double.0: 0.3, single: {{ramp: [0.2, 0.8]}}, "*.img_mlp.*": 0.1, double.0-1.v: 0.7}}
  rules:
    - {{match: "guidance_in.*", take: one}}
    - {{match: "final_layer.*", method: weighted_sum, inputs: [one, two], alpha: 0.25}}
    - {{match: modulation, take: two}}
output: {{layout: bfl, dtype: fp32}}
seed: 7
"""


@pytest.fixture
def full(tiny: TinyCheckpoints, tmp_path: Path) -> Path:
    path = tmp_path / "full.yaml"
    path.write_text(FULL.format(a=tiny.a, b=tiny.b, c=tiny.c))
    return path


def option(plan: Plan, tensor: str, name: str) -> dict[int, object]:
    """An option of the last step of every job of a tensor, by the job's first element; one value where all inputs have it."""
    found: dict[int, object] = {}
    for job in plan.jobs:
        step = job.program[-1]
        if job.tensor == tensor and isinstance(step, Apply):
            value = step.options[name]
            found[job.origin] = value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value
    return found


def test_numbers_reach_their_tensors(full: Path) -> None:
    plan = fs.plan(load_recipe(full))
    weight = 48 * 48
    assert option(plan, "img_in.weight", "density") == {0: 0.4}
    assert option(plan, "double_blocks.0.txt_attn.proj.weight", "density") == {0: 0.3}
    assert option(plan, "double_blocks.1.txt_attn.proj.weight", "density") == {0: 0.4}
    assert option(plan, "double_blocks.0.img_mlp.0.weight", "density") == {0: 0.1}  # the later selector wins
    assert option(plan, "double_blocks.0.img_attn.qkv.weight", "density") == {0: 0.3, weight: 0.3, 2 * weight: 0.7}
    ramp = [option(plan, f"single_blocks.{i}.linear2.weight", "density")[0] for i in range(3)]
    assert ramp == pytest.approx([0.2, 0.5, 0.8])


def test_rules_take_the_place_of_the_method(full: Path, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    import torch

    fs.merge(load_recipe(full), tmp_path / "out.safetensors")
    out, b, c = (tensors_of(path) for path in (tmp_path / "out.safetensors", tiny.b, tiny.c))
    assert torch.equal(out["guidance_in.in_layer.weight"], b["guidance_in.in_layer.weight"].float())
    assert torch.equal(out["single_blocks.1.modulation.lin.weight"], c["single_blocks.1.modulation.lin.weight"].float())
    final = torch.lerp(b["final_layer.linear.weight"].float(), c["final_layer.linear.weight"].float(), 0.25)
    assert torch.equal(out["final_layer.linear.weight"], final)
    # final_layer.adaLN_modulation is both `final_layer.*` and `modulation`: the first rule wins
    key = "final_layer.adaLN_modulation.1.bias"
    assert torch.equal(out[key], torch.lerp(b[key].float(), c[key].float(), 0.25))


def test_a_recipe_survives_its_own_text(full: Path, tmp_path: Path) -> None:
    """Loaded, written into the output, read back from there: the same plan, byte for byte."""
    recipe = load_recipe(full)
    again = recipe_from_text(recipe_to_text(recipe), "text")
    assert recipe_to_text(again) == recipe_to_text(recipe)
    assert fs.plan(again).jobs == fs.plan(recipe).jobs


@pytest.mark.parametrize("wish", ["weighted", "nested", "formula"])
def test_expressions_survive_as_text(wish: str, tiny: TinyCheckpoints) -> None:
    a, b, c = (fs.model(str(path), name=name) for path, name in ((tiny.a, "a"), (tiny.b, "b"), (tiny.c, "c")))
    expression = {
        "weighted": fs.weighted_sum(a, b, alpha=0.125),
        "nested": fs.dare_ties(a, fs.slerp(b, c, alpha=0.1), a + (b - c) * 0.3, density=0.3, weights=[1, 2]),
        "formula": 0.1 * a + 0.2 * b + 0.7 * c,
    }[wish]
    first = fs.api.as_recipe(expression, seed=3)
    assert fs.plan(recipe_from_text(recipe_to_text(first), "text")).jobs == fs.plan(first).jobs


@pytest.mark.parametrize("name", presets())
def test_presets_plan_on_tiny_models(name: str, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    recipe = load_preset(name, {"schnell": str(tiny.schnell), "krea": str(tiny.a)})
    plan = fs.plan(recipe, output=tmp_path / "out")
    assert plan.layout == "diffusers" and plan.folder


def test_the_krea_preset_is_the_script(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """(a + b) / 2 in bf16 for everything but guidance, which schnell does not have; stock diffusers loads it."""
    import torch
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    fs.merge(load_preset("flux-krea-schnell", {"schnell": str(tiny.schnell), "krea": str(tiny.sharded)}), tmp_path / "out")
    merged = FluxTransformer2DModel.from_pretrained(tmp_path / "out", torch_dtype=torch.bfloat16).state_dict()
    schnell = fs.load(str(tiny.schnell)).state_dict()
    krea = tensors_of(tiny.sharded)
    assert merged.keys() == schnell.keys()
    assert all(torch.equal(merged[key], (schnell[key] + krea[key]) / 2) for key in merged)


def test_set_changes_a_field(full: Path) -> None:
    recipe = load_recipe(full, assign=["merge.density=0.25", "merge.inputs.0.weight=0.9", "output.layout=diffusers"])
    plan = fs.plan(recipe)
    assert option(plan, "img_in.weight", "density") == {0: 0.25}
    assert option(plan, "img_in.weight", "weights") == {0: (0.9, 0.4)}
    assert plan.layout == "diffusers"
