"""LiNeS: the scale of block l of L is alpha + beta (l - 1) / (L - 1)."""

from pathlib import Path

import pytest
import torch

import fluxsmith as fs
from fluxsmith.errors import UsageError
from support.tiny_flux import TinyCheckpoints, tensors_of

#: The tiny model has two double blocks and three single ones.
BLOCKS = ["double_blocks.0", "double_blocks.1", "single_blocks.0", "single_blocks.1", "single_blocks.2"]


def place(name: str) -> float:
    block = next((i for i, prefix in enumerate(BLOCKS) if name.startswith(prefix)), None)
    return (4 if name.startswith("final_layer") else 0) / 4 if block is None else block / 4


def test_the_scale_grows_with_depth(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base, a, b = (fs.model(str(path), name=name) for path, name in ((tiny.a, "a"), (tiny.b, "b"), (tiny.c, "c")))
    fs.merge(fs.lines(base, a, b, alpha=0.2, beta=0.6, weights=[1.0, 0.5]), tmp_path / "out.safetensors", dtype="fp32")
    found = tensors_of(tmp_path / "out.safetensors")
    x, y, z = ({name: t.double() for name, t in tensors_of(path).items()} for path in (tiny.a, tiny.b, tiny.c))
    for name in found:
        scale = 0.2 + 0.6 * place(name)
        expected = x[name] + scale * ((y[name] - x[name]) + 0.5 * (z[name] - x[name]))
        assert torch.allclose(found[name].double(), expected, atol=1e-6), name


def test_on_top_of_another_method(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base, a, b = (fs.model(str(path), name=name) for path, name in ((tiny.a, "a"), (tiny.b, "b"), (tiny.c, "c")))
    fs.merge(fs.lines(base, a, b, alpha=0.0, beta=1.0, method=fs.ties, density=0.3), tmp_path / "grown.safetensors", dtype="fp32")
    fs.merge(fs.ties(base, a, b, density=0.3), tmp_path / "flat.safetensors", dtype="fp32")
    grown, flat, origin = (tensors_of(path) for path in (tmp_path / "grown.safetensors", tmp_path / "flat.safetensors", tiny.a))
    for name in grown:
        expected = origin[name].float() + place(name) * (flat[name] - origin[name].float())
        assert torch.allclose(grown[name], expected, atol=1e-6), name


def test_a_method_without_a_scale_is_refused(tiny: TinyCheckpoints) -> None:
    with pytest.raises(UsageError, match="no `scale`"):
        fs.lines(str(tiny.a), str(tiny.b), alpha=0.1, beta=0.5, method=fs.weighted_sum)
