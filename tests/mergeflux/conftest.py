"""Small files with the names of a FLUX.1 transformer, each different in type, prefix or keys."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergeflux.spelled_out import same_bits
from support.cli_runs import CliRun, run_cli

SHAPES: dict[str, tuple[int, ...]] = {
    "img_in.weight": (8, 3), "guidance_in.in_layer.weight": (8, 8), "txt_in.weight": (8, 130), "final_layer.linear.bias": (1,),
    **{f"double_blocks.{i}.img_attn.qkv.weight": (24, 8) for i in range(3)},
    **{f"double_blocks.{i}.img_attn.norm.query_norm.scale": (4,) for i in range(3)},
    **{f"single_blocks.{i}.linear1.weight": (56, 8) for i in range(5)},
}  # fmt: skip


@dataclass(frozen=True)
class Files:
    """Paths and tensors of the checkpoints, by name.

    `a` bf16; `b` bf16 with ComfyUI's prefix and without guidance; `c` fp16 with a VAE; `d` fp32 without some tensors;
    `e` fp8; `base` bf16, what they were tuned from; `other` has none of their keys.
    """

    root: Path
    tensors: Mapping[str, Mapping[str, Tensor]]

    def path(self, name: str) -> Path:
        return self.root / f"{name}.safetensors"

    def paths(self, names: str) -> list[Path]:
        return [self.path(name) for name in names.split()]

    def of(self, names: str) -> list[Mapping[str, Tensor]]:
        return [self.tensors[name] for name in names.split()]


def _tuned(base: Mapping[str, Tensor], seed: int, dtype: torch.dtype, change: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {key: (t.float() + torch.randn(t.shape, generator=generator) * change).to(dtype) for key, t in base.items()}
    for tensor in tensors.values():
        flat = tensor.view(-1)
        flat[3::17] = -0.0  # signs of zero, and whole numbers of steps, so that magnitudes tie
        flat[5::11] = 0.5
    return tensors


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    root = tmp_path_factory.mktemp("mergeflux")
    zeros = {key: torch.zeros(shape) for key, shape in SHAPES.items()}
    base = _tuned(zeros, 0, torch.bfloat16, 0.05)
    tuned = {
        name: _tuned(base, seed, dtype, 0.03)
        for seed, (name, dtype) in enumerate(
            {"a": torch.bfloat16, "b": torch.bfloat16, "c": torch.float16, "d": torch.float32, "e": torch.float8_e4m3fn}.items(), 1
        )
    }
    del tuned["b"]["guidance_in.in_layer.weight"], tuned["d"]["img_in.weight"], tuned["d"]["single_blocks.4.linear1.weight"]
    tuned["b"] = {f"model.diffusion_model.{key}": tensor for key, tensor in tuned["b"].items()}
    tuned["c"]["vae.decoder.conv_in.weight"] = torch.full((2, 2), 0.25, dtype=torch.float16)
    made = {"base": base, **tuned, "other": {"something.else": torch.ones(3)}}
    for name, tensors in made.items():
        save_file(tensors, root / f"{name}.safetensors")
    return Files(root, made)


Merge = Callable[..., tuple[dict[str, Tensor], CliRun]]


@pytest.fixture
def merge(tmp_path: Path) -> Merge:
    """Runs a command into a new file on the CPU: its tensors and what it said. It must succeed."""

    def run(*arguments: object) -> tuple[dict[str, Tensor], CliRun]:
        output = tmp_path / "out.safetensors"
        done = run_cli(*arguments, "--output", output, "--device", "cpu", "--force")
        assert done.code == 0, done.err
        return load_file(output), done

    return run


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a file."""
    with safe_open(path, "pt") as file:
        return file.metadata()


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same keys with the same bits."""
    assert found.keys() == expected.keys()
    different = {key: (found[key], expected[key]) for key in expected if not same_bits(found[key], expected[key])}
    assert not different
