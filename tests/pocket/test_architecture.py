import torch

from fluxsmith.pocket.architecture import build, copy_of
from fluxsmith.pocket.captions import encode
from fluxsmith.pocket.checkpoints import load_checkpoint
from fluxsmith.pocket.digits import GRID
from fluxsmith.pocket.forward import velocity


def test_build_draws_every_weight_from_its_seed() -> None:
    state = torch.get_rng_state()
    first, second, other = build(0).state_dict(), build(0).state_dict(), build(1).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    zero = {name for name in first if torch.equal(first[name], other[name]) and not name.endswith(("norm_q.weight", "norm_k.weight"))}
    assert {name for name in zero if "norm_added" not in name} == {name for name in first if not first[name].any()}


def test_fresh_transformer_predicts_zero() -> None:
    transformer = build(0)
    with torch.no_grad():
        assert not velocity(transformer, torch.randn(1, 16, 4), torch.tensor([0.5]), encode(["two"]), GRID).any()
    zeros = [name for name, weight in transformer.named_parameters() if not weight.any()]
    assert len(zeros) == 2 * (2 * 2 + 4 + 1 + 1)  # weight and bias of: two double blocks' pairs, four single blocks, norm_out, proj_out


def test_a_new_guidance_embedder_changes_nothing() -> None:
    base = load_checkpoint("base")
    guided = copy_of(base, guidance_seed=0)
    latents, times, conditioning = torch.randn(2, 16, 4), torch.tensor([0.2, 0.8]), encode(["two", ""])
    with torch.no_grad():
        expected = velocity(base, latents, times, conditioning, GRID)
        assert torch.equal(velocity(guided, latents, times, conditioning, GRID, torch.tensor([1.0, 4.0])), expected)
