"""Guidance layers: where inputs differ, a policy is asked for, and each does exactly what it says."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import fluxsmith as fs
from fluxsmith.errors import IncompatibleError
from support.tiny_flux import TinyCheckpoints, tensors_of


def forward(model: torch.nn.Module, guidance: float | None) -> Tensor:
    """The model's output in float32 on fixed inputs."""
    generator = torch.Generator().manual_seed(3)
    inputs = {
        "hidden_states": torch.randn(1, 6, 16, generator=generator), "encoder_hidden_states": torch.randn(1, 5, 32, generator=generator),
        "pooled_projections": torch.randn(1, 24, generator=generator), "timestep": torch.tensor([0.6]),
        "img_ids": torch.zeros(6, 3), "txt_ids": torch.zeros(5, 3),
    }  # fmt: skip
    value = None if guidance is None else torch.tensor([guidance])
    with torch.no_grad():
        return model.float()(**inputs, guidance=value).sample


def test_a_policy_is_asked_for(tiny: TinyCheckpoints) -> None:
    with pytest.raises(IncompatibleError) as caught:
        fs.plan(fs.weighted_sum(str(tiny.schnell), str(tiny.a)))
    assert caught.value.code == "recipe.guidance"
    assert "bake(3.5)" in str(caught.value)


def test_baking_is_exact_at_its_guidance(tiny: TinyCheckpoints) -> None:
    dev = fs.load(str(tiny.a), dtype="fp32")
    baked = fs.load(str(tiny.a), dtype="fp32", guidance="bake(3.5)")
    assert not baked.config.guidance_embeds
    assert (forward(baked, None) - forward(dev, 3.5)).abs().max() < 1e-5  # diffusers rounds the angles to float32
    assert (forward(baked, None) - forward(dev, 1.0)).abs().max() > 1e-4


def test_zero_gives_the_shape_of_dev_without_effect(tiny: TinyCheckpoints) -> None:
    schnell = fs.load(str(tiny.schnell), dtype="fp32")
    shaped = fs.load(str(tiny.schnell), dtype="fp32", guidance="zero")
    assert shaped.config.guidance_embeds
    assert torch.equal(forward(shaped, 3.5), forward(schnell, None))
    merged = fs.load(fs.weighted_sum(str(tiny.schnell), str(tiny.a)), guidance="zero")
    assert not merged.state_dict()["time_text_embed.guidance_embedder.linear_2.weight"].any()
    assert merged.state_dict()["time_text_embed.guidance_embedder.linear_1.weight"].any()


@pytest.mark.parametrize("policy", ["drop", "keep", "bake(2)", "from(schnell)", "from(dev)"])
def test_policies_on_a_merge(policy: str, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    schnell, dev = fs.model(str(tiny.schnell), name="schnell"), fs.model(str(tiny.a), name="dev")
    done = fs.merge(fs.weighted_sum(schnell, dev, alpha=0.5), tmp_path / "out.safetensors", guidance=policy)
    out, s, d = tensors_of(tmp_path / "out.safetensors"), tensors_of(tiny.schnell), tensors_of(tiny.a)
    has = policy in ("keep", "from(dev)")
    assert len(out) == len(s) + 4 * has
    for key in s:
        if policy != "bake(2)" or key != "time_in.out_layer.bias":
            assert torch.equal(out[key], torch.lerp(s[key].float(), d[key].float(), 0.5).bfloat16()), key
    for key in d.keys() - s.keys():
        assert (key in out) == has and (not has or torch.equal(out[key], d[key]))
    outcome = next(i.outcome for i in done.plan.inputs if i.name == "dev")
    assert sum(outcome.values()) == len(d)
    verb = "folded" if policy == "bake(2)" else "dropped"
    assert outcome.get(f"{verb} (guidance: {policy})", 0) == (0 if has else 4)


def test_baked_merge_adds_each_models_own_guidance(tiny: TinyCheckpoints) -> None:
    """A half-and-half merge of a baked dev with schnell moves the bias by half of dev's embedding."""
    schnell, dev = fs.model(str(tiny.schnell), name="schnell"), fs.model(str(tiny.a), name="dev")
    key = "time_text_embed.timestep_embedder.linear_2.bias"
    baked = fs.load(str(tiny.a), dtype="fp32", guidance="bake(2)").state_dict()[key]
    merged = fs.load(fs.weighted_sum(schnell, dev, alpha=0.5), dtype="fp32", guidance="bake(2)").state_dict()[key]
    plain = fs.load(str(tiny.schnell), dtype="fp32").state_dict()[key]
    assert torch.allclose(merged, (plain + baked) / 2, atol=1e-7)
