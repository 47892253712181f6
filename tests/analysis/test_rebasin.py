"""Units change places without changing what a model computes, and a shuffled model is put in order again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fluxsmith as fs
from fluxsmith.analysis.matching import assignment, match_units, places_of
from fluxsmith.analysis.rebasin import match_checkpoints, reordered
from fluxsmith.analysis.symmetries import Units, flux1_units
from fluxsmith.errors import IncompatibleError
from support.cli_runs import run_cli
from support.tiny_flux import TINY, TinyCheckpoints, make_transformer, save_bfl, save_diffusers, tensors_of

DIMS = {"H": 48, "M": 192, "D": 24, "double": 2, "single": 3, "guidance": 1}


def shuffled(units: Units, generator: torch.Generator) -> Tensor:
    """A random order that the units allow: heads as wholes, and dims inside of them."""
    if not units.head:
        return torch.randperm(units.count, generator=generator)
    heads = torch.randperm(units.count // units.head, generator=generator)
    return torch.cat([units.head * int(head) + torch.randperm(units.head, generator=generator) for head in heads])


def random_orders(tensors: dict[str, Tensor], seed: int, chosen: Callable[[Units], bool] = lambda units: True) -> dict[str, Tensor]:
    """Orders of a BFL checkpoint's tensors in which its units are shuffled."""
    generator = torch.Generator().manual_seed(seed)
    orders: dict[str, Tensor] = {}
    for units in filter(chosen, flux1_units(DIMS)):
        for (place, columns), numbers in places_of(units, shuffled(units, generator)).items():
            shape = tensors[place.name].shape
            whole = orders.setdefault(place.name, torch.cat([torch.arange(size) for size in shape]).float())
            at = place.start + (shape[0] if columns else 0)
            whole[at : at + len(numbers)] = numbers.float()
    return orders


@pytest.fixture(scope="module")
def strong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with weights of N(0, 0.2): large enough that attention decides what comes out."""
    folder = tmp_path_factory.mktemp("strong")
    transformer = make_transformer(7)
    for parameter in transformer.parameters():
        parameter.data *= 4
    return save_bfl(save_diffusers(transformer, folder / "diffusers"), folder / "strong.safetensors")


def same(found: Tensor, expected: Tensor) -> bool:
    """Equal but for the order of additions in fp32."""
    return torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))


def outputs(file: Path) -> Tensor:
    """What a model predicts for some fixed inputs."""
    transformer = fs.load(str(file), dtype="fp32")
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    ids = torch.tensor([[0.0, row, column] for row in range(3) for column in range(3)])
    with torch.inference_mode():
        return transformer(
            hidden_states=random(2, 9, TINY["in_channels"]), encoder_hidden_states=random(2, 4, TINY["joint_attention_dim"]),
            pooled_projections=random(2, TINY["pooled_projection_dim"]), timestep=torch.tensor([0.2, 0.9]),
            guidance=torch.tensor([2.0, 3.0]), img_ids=ids, txt_ids=torch.zeros(4, 3), return_dict=False,
        )[0]  # fmt: skip


def shuffle(file: Path, target: Path, seed: int, chosen: Callable[[Units], bool] = lambda units: True) -> Path:
    fs.merge(reordered(str(file), random_orders(tensors_of(file), seed, chosen)), target)
    return target


@pytest.mark.parametrize("kind", ["heads", "mlp", "_in"])
def test_units_may_change_places(strong: Path, tmp_path: Path, kind: str) -> None:
    """Every kind by itself, in both kinds of blocks: other weights, the same function."""
    other = shuffle(strong, tmp_path / "shuffled.safetensors", 1, lambda units: kind in units.where)
    before, after = tensors_of(strong), tensors_of(other)
    assert sum(not torch.equal(before[name], after[name]) for name in before) >= 4
    assert same(outputs(other), outputs(strong))


@pytest.mark.parametrize("stem", ["double_blocks.0.img_attn.qkv", "single_blocks.1.linear1"])
@pytest.mark.parametrize("which", ["q", "v"])
def test_other_exchanges_are_seen(strong: Path, tmp_path: Path, stem: str, which: str) -> None:
    """Dims of q are tied by rotary embedding and norms; dims of v without the layer after them are, too."""
    shape = tensors_of(strong)[f"{stem}.weight"].shape
    order = torch.cat([torch.arange(size) for size in shape]).float()
    start = 96 if which == "v" else 0
    order[start : start + 24] = order[start : start + 24].flip(0)
    fs.merge(reordered(str(strong), {f"{stem}.weight": order}), tmp_path / "wrong.safetensors")
    assert not torch.allclose(outputs(tmp_path / "wrong.safetensors"), outputs(strong), atol=1e-3)


def test_a_shuffled_model_is_put_in_order_again(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """The command on a shuffled copy gives the model back, bit by bit, in another layout too."""
    shuffle(tiny.a, tmp_path / "shuffled.safetensors", 2)
    done = run_cli("rebasin", tmp_path / "shuffled.safetensors", "--to", tiny.a, "-o", tmp_path / "back.safetensors")
    assert done.code == 0, done.err
    found, expected = tensors_of(tmp_path / "back.safetensors"), tensors_of(tiny.a)
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == torch.bfloat16 and torch.equal(found[name], expected[name]) for name in expected)
    again = run_cli("reproduce", tmp_path / "back.safetensors", "-o", tmp_path / "again.safetensors")
    assert again.code == 0, again.err
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "back.safetensors").read_bytes()
    folder = run_cli("rebasin", tmp_path / "shuffled.safetensors", "--to", tiny.sharded, "-o", tmp_path / "folder", "--layout", "diffusers")
    assert folder.code == 0, folder.err
    diffusers, theirs = tensors_of(tmp_path / "folder"), tensors_of(tiny.sharded)
    assert all(torch.equal(diffusers[name], theirs[name]) for name in theirs)


def test_a_noisy_copy_is_still_matched(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """Matching does not hang on equality: half as much noise as weights."""
    from safetensors.torch import save_file

    shuffle(tiny.a, tmp_path / "shuffled.safetensors", 3)
    generator = torch.Generator().manual_seed(4)
    noisy = {
        name: (tensor.float() + 0.025 * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        for name, tensor in tensors_of(tmp_path / "shuffled.safetensors").items()
    }
    save_file(noisy, tmp_path / "noisy.safetensors")
    truth = match_checkpoints(str(tmp_path / "shuffled.safetensors"), str(tiny.a))
    found = match_checkpoints(str(tmp_path / "noisy.safetensors"), str(tiny.a))
    assert all(torch.equal(found.tensors[name], order) for name, order in truth.tensors.items())
    assert found.units == sum(units.count for units in flux1_units(DIMS))


def test_a_model_beside_itself_stays_as_it_is(tiny: TinyCheckpoints) -> None:
    found = match_checkpoints(str(tiny.a), str(tiny.sharded))
    assert sum(found.moved.values()) == 0


def test_no_other_order_is_nearer() -> None:
    """Against all permutations of a few units."""
    from itertools import permutations

    for seed in range(10):
        similarity = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed))
        best = max(sum(float(similarity[p[j], j]) for j in range(5)) for p in permutations(range(5)))
        order = assignment(similarity)
        assert sum(float(similarity[order[j], j]) for j in range(5)) == pytest.approx(best, abs=1e-5)


def test_heads_are_matched_with_the_best_order_of_their_dims() -> None:
    """All orders of two heads of three dims, by brute force."""
    from itertools import permutations, product

    units = next(u for u in flux1_units({"H": 6, "M": 24, "D": 3, "double": 0, "single": 1}) if u.head)

    def tensors(seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = {"linear1.weight": (42, 6), "linear1.bias": (42,), "linear2.weight": (6, 30)}
        return {f"single_blocks.0.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    a, b = tensors(1), tensors(2)

    def value(order: Tensor) -> float:
        total = 0.0
        for (place, columns), numbers in places_of(units, order).items():
            one, other = (m[place.name].mT if columns else m[place.name] for m in (a, b))
            total += float((one[numbers] * other[place.start : place.start + len(numbers)]).sum())
        return total

    orders = [
        torch.tensor([3 * h + d for h, dims in zip(heads, inner, strict=True) for d in dims])
        for heads in permutations(range(2))
        for inner in product(permutations(range(3)), repeat=2)
    ]
    found = match_units(units, a.__getitem__, b.__getitem__)
    assert value(found) == pytest.approx(max(value(order) for order in orders), abs=1e-4)


def test_other_families_and_sizes_are_refused(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    small = save_bfl(save_diffusers(make_transformer(1, num_layers=1), tmp_path / "x"), tmp_path / "small.safetensors")
    with pytest.raises(IncompatibleError) as caught:
        match_checkpoints(str(small), str(tiny.a))
    assert caught.value.code == "model.different-size"
    done: Any = run_cli("rebasin", tmp_path / "other.safetensors", "--to", tiny.a, "-o", tmp_path / "out.safetensors")
    assert done.code in (3, 4)
    assert list(tmp_path.glob("out*")) == []
