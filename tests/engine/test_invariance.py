"""The output is a function of the recipe and the inputs: not of threads, layouts, shards or memory."""

import hashlib
from pathlib import Path

import pytest

import fluxsmith as fs
from fluxsmith.engine import memory
from fluxsmith.recipes.expressions import Expression
from support.tiny_flux import TinyCheckpoints, tensors_of


def wishes(a: Path, b: Path, c: Path) -> dict[str, Expression]:
    x, y, z = (fs.model(str(path), name=name) for path, name in ((a, "x"), (b, "y"), (c, "z")))
    return {
        "weighted_sum": fs.weighted_sum(x, y, alpha=0.3),
        "linear": fs.linear(x, y, z, weights=[0.2, 0.3, 0.5]),
        "slerp": fs.slerp(x, y, alpha=0.4),
        "ties": fs.ties(x, y, z, density=0.3, weights=[1.0, 0.7]),
        "dare_ties": fs.dare_ties(x, y, z, density=0.4),
        "nested": fs.task_arithmetic(x, fs.slerp(y, z), weights=[0.5]) * 0.5 + z * 0.5,
    }


def fingerprint(path: Path) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors_of(path).items()):
        digest.update(key.encode() + tensor.contiguous().view(-1).float().numpy().tobytes())
    return digest.hexdigest()


def merged(wish: Expression, out: Path, **options: object) -> str:
    fs.merge(wish, out, force=True, layout="bfl", **options)  # pyright: ignore[reportArgumentType]
    return fingerprint(out)


@pytest.mark.parametrize("name", ["weighted_sum", "linear", "slerp", "ties", "dare_ties", "nested"])
def test_same_bytes_for_any_threads_and_input_layouts(
    name: str, tiny: TinyCheckpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tiny tensors would fit one tile: with small tiles several threads share a tensor.
    monkeypatch.setattr(memory, "TILE", 1 << 10)
    monkeypatch.setattr(memory, "SMALLEST", 1 << 8)
    out = tmp_path / "out.safetensors"
    results = {merged(wishes(tiny.a, tiny.b, tiny.c)[name], out, threads=threads) for threads in (1, 2, 4)}
    results |= {merged(wishes(tiny.sharded, tiny.b, tiny.c)[name], out), merged(wishes(tiny.comfy, tiny.b, tiny.c)[name], out)}
    assert len(results) == 1


@pytest.mark.parametrize("name", ["weighted_sum", "ties", "dare_ties"])
def test_same_bytes_for_any_output_layout(name: str, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    wish = wishes(tiny.a, tiny.b, tiny.c)[name]
    direct = merged(wish, tmp_path / "bfl.safetensors")
    fs.merge(wish, tmp_path / "shards", layout="diffusers", shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 5
    back = tmp_path / "back.safetensors"
    fs.merge(str(tmp_path / "shards"), back, layout="bfl")
    assert fingerprint(back) == direct


@pytest.mark.parametrize("name", ["weighted_sum", "linear", "ties", "dare_ties"])
def test_tile_size_does_not_change_elementwise_results(
    name: str, tiny: TinyCheckpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = wishes(tiny.a, tiny.b, tiny.c)[name]
    whole = merged(wish, tmp_path / "whole.safetensors")
    monkeypatch.setattr(memory, "TILE", 1 << 9)
    monkeypatch.setattr(memory, "SMALLEST", 1 << 8)
    assert merged(wish, tmp_path / "tiled.safetensors") == whole


def test_the_whole_file_is_the_same_every_time(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    wish = wishes(tiny.a, tiny.b, tiny.c)["ties"]
    files = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for file in files:
        fs.merge(wish, file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_random_masks_depend_on_seed_and_tensor(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    a, b = fs.model(str(tiny.a), name="a"), fs.model(str(tiny.b), name="b")
    wish = fs.dare_linear(a, b, density=0.5)
    one, two = (merged(wish, tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2))
    assert one != two
    import torch

    base, out = tensors_of(tiny.a), tensors_of(tmp_path / "1.safetensors")
    masks = [(out[f"single_blocks.{i}.linear1.weight"] != base[f"single_blocks.{i}.linear1.weight"]) for i in (0, 1)]
    assert not torch.equal(*masks)
    assert 0.45 < masks[0].float().mean() < 0.55


def test_in_memory_and_on_disk_are_the_same(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    import torch

    wish = wishes(tiny.a, tiny.b, tiny.c)["ties"]
    transformer = fs.load(wish)
    fs.merge(wish, tmp_path / "d", layout="diffusers")
    written = tensors_of(tmp_path / "d")
    state = transformer.state_dict()
    assert state.keys() == written.keys()
    assert all(torch.equal(state[key], written[key]) for key in state)


def test_tensors_without_elements_do_not_end_the_run(tmp_path: Path) -> None:
    """A structural checkpoint with an empty tensor in the middle and a scalar: all is written."""
    import torch
    from safetensors.torch import save_file

    def tensors(value: float) -> dict[str, torch.Tensor]:
        return {"a": torch.full((3,), value), "b": torch.empty(0, 4), "c": torch.full((2, 2), value), "d": torch.tensor(value)}

    for name, value in (("x", 1.0), ("y", 3.0)):
        save_file(tensors(value), tmp_path / f"{name}.safetensors")
    wish = fs.weighted_sum(str(tmp_path / "x.safetensors"), str(tmp_path / "y.safetensors"), alpha=0.25)
    fs.merge(wish, tmp_path / "out.safetensors", threads=1)
    out = tensors_of(tmp_path / "out.safetensors")
    assert all(torch.equal(out[key], expected) for key, expected in tensors(1.5).items())
