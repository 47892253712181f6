"""The values of quantised weights are those that their producers give back, bit for bit, wherever a tile begins."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fluxsmith as fs
from fluxsmith.io.codecs import decoding
from quantised.producers import Stored, comfy, comfy_legacy, gguf_file, int8, nf4, sd_scripts
from support.in_memory import small_tiles

Tensors = dict[str, Tensor]

BLOCK_TYPES = [
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S",
    "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4",
]  # fmt: skip

E5M2 = torch.float8_e5m2
SAFETENSORS: dict[str, Callable[[Tensors], Stored]] = {
    "fp8 legacy": comfy_legacy,
    "fp8 legacy e5m2": lambda tensors: comfy_legacy(tensors, dtype=E5M2),
    "fp8 comfy": comfy,
    "fp8 comfy listed": lambda tensors: comfy(tensors, marks=False),
    "fp8 comfy e5m2": lambda tensors: comfy(tensors, dtype=E5M2),
    "fp8 rows": sd_scripts,
    "fp8 blocks": lambda tensors: sd_scripts(tensors, block=64),
    "nf4": nf4,
    "fp4": lambda tensors: nf4(tensors, kind="fp4"),
    "nf4 nested": lambda tensors: nf4(tensors, nested=True),
    "nf4 blocks of 256": lambda tensors: nf4(tensors, blocksize=256),
    "nf4 nested blocks of 128": lambda tensors: nf4(tensors, blocksize=128, nested=True),
    "int8": int8,
}


def weights(dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """Matrices whose rows are no whole tiles, one with a number of elements that is no whole blocks, and others."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "a.weight": (48, 192),
        "a.bias": (48,),
        "deep.b.weight": (70, 320),
        "odd.weight": (5, 6),
        "cut.weight": (3, 50),
        "norm.scale": (24,),
    }
    return {key: (torch.randn(shape, generator=generator) * 0.05).to(dtype) for key, shape in shapes.items()}


@pytest.mark.parametrize("tiles", ["small", "large"])
@pytest.mark.parametrize("scheme", SAFETENSORS)
def test_values_are_those_of_the_producer(scheme: str, tiles: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if tiles == "small":
        small_tiles(monkeypatch)
        monkeypatch.setattr(decoding, "_CHUNK", 1 << 12)
    plain = weights()
    stored = SAFETENSORS[scheme](plain)
    found = fs.load_state_dict(str(stored.save(tmp_path / "q.safetensors")), dtype="fp32")
    assert found.keys() == plain.keys()
    for key, tensor in plain.items():
        # bitsandbytes rounds to the type of the weight, which ours does when it is written
        ours = found[key].to(torch.bfloat16) if "4" in scheme.split()[0] else found[key]
        assert torch.equal(ours, stored.values.get(key, tensor).to(ours.dtype)), key


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_every_gguf_type_is_decoded_as_by_the_gguf_package(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)  # tiles of 128 begin inside blocks of 256
    plain = {"a.weight": weights()["a.weight"].reshape(36, 256), "a.bias": weights()["a.bias"]}
    values = gguf_file(tmp_path / "q.gguf", plain, kind)
    found = fs.load_state_dict(str(tmp_path / "q.gguf"), dtype="fp32")
    assert found.keys() == plain.keys()
    assert torch.equal(found["a.weight"], values["a.weight"])
    assert torch.equal(found["a.bias"], plain["a.bias"].float())


def test_every_type_of_the_gguf_package_is_known() -> None:
    from gguf.quants import _type_traits  # pyright: ignore[reportPrivateUsage]

    from fluxsmith.io.codecs.gguf import BLOCKS
    from fluxsmith.io.gguf import PLAIN

    assert {kind.name for kind in _type_traits} <= {name for name, _, _ in BLOCKS.values()} | set(PLAIN.values())
    assert {name for name, _, _ in BLOCKS.values()} == set(BLOCK_TYPES)


def test_original_shapes_of_gguf_are_honoured(tmp_path: Path) -> None:
    plain = {"conv.weight": weights()["a.weight"].reshape(36, 256)}
    values = gguf_file(tmp_path / "q.gguf", plain, "Q8_0", shapes={"conv.weight": (64, 16, 3, 3)})
    found = fs.load_state_dict(str(tmp_path / "q.gguf"), dtype="fp32")["conv.weight"]
    assert found.shape == (64, 16, 3, 3)
    assert torch.equal(found, values["conv.weight"])


def test_a_state_dict_in_memory_is_read_like_a_file() -> None:
    stored = nf4(weights(), nested=True)
    found = fs.load_state_dict(fs.state_dict(stored.tensors, name="m"), dtype="bf16")
    assert torch.equal(found["a.weight"], stored.values["a.weight"])


def test_factors_of_inputs_are_folded_into_the_weight(tmp_path: Path) -> None:
    """A layer with pre_quant_scale computes (x * s) @ W^T; the plain weight must give the same for x."""
    plain = weights()
    stored = comfy(plain)
    scale, second = torch.rand(192) + 0.5, torch.tensor(0.25)
    stored.tensors |= {"a.pre_quant_scale": scale, "a.weight_scale_2": second}
    found = fs.load_state_dict(str(stored.save(tmp_path / "q.safetensors")), dtype="fp32")
    x = torch.randn(3, 192)
    expected = (x * scale) @ (stored.values["a.weight"] * second).T
    torch.testing.assert_close(x @ found["a.weight"].T, expected)


def test_a_scale_of_one_beside_a_plain_weight_is_no_scale(tmp_path: Path) -> None:
    """Some writers of the older convention give one to every layer, also to those that they keep in bf16."""
    stored = comfy_legacy(weights())
    stored.tensors |= {"a.weight": weights()["a.weight"], "a.scale_weight": torch.tensor(1.0)}
    found = fs.load_state_dict(str(stored.save(tmp_path / "q.safetensors")), dtype="fp32")
    assert torch.equal(found["a.weight"], weights()["a.weight"].float())


def test_embeddings_of_a_scaled_text_encoder_may_be_plain(tmp_path: Path) -> None:
    """ComfyUI scales linear layers alone."""
    stored = comfy_legacy(weights())
    stored.tensors["shared.weight"] = torch.randn(20, 8).to(torch.float8_e4m3fn)
    found = fs.load_state_dict(str(stored.save(tmp_path / "q.safetensors")), dtype="fp32")
    assert torch.equal(found["shared.weight"], stored.tensors["shared.weight"].float())


def test_a_merge_of_scaled_fp8_and_bf16_is_that_of_the_values(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    other = {key: tensor.flip(0).contiguous() for key, tensor in weights().items()}
    save_file(other, tmp_path / "b.safetensors")
    stored = comfy(weights())
    a, b = str(stored.save(tmp_path / "a.safetensors")), str(tmp_path / "b.safetensors")
    found = fs.load_state_dict(fs.weighted_sum(fs.model(a), fs.model(b), alpha=0.25))
    expected = torch.lerp(stored.values["a.weight"], other["a.weight"].float(), 0.25)
    assert found["a.weight"].dtype is torch.bfloat16
    assert torch.equal(found["a.weight"], expected.bfloat16())


def test_statistics_see_the_values(tmp_path: Path) -> None:
    """TIES trims by the magnitude of deltas; in a tensor of several tiles it first samples short runs, which begin anywhere."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    base, tuned = ({"a.weight": torch.randn(1056, 1024, generator=generator)} for _ in range(2))
    save_file(base, tmp_path / "base.safetensors")
    stored = sd_scripts(tuned, block=64)
    file = stored.save(tmp_path / "q.safetensors")
    save_file(stored.values, tmp_path / "plain.safetensors")

    def merged(name: Path) -> Tensor:
        models = [fs.model(str(tmp_path / "base.safetensors")), fs.model(str(name), name="m")]
        return fs.load_state_dict(fs.ties(*models, density=0.3), dtype="fp32")["a.weight"]

    assert torch.equal(merged(file), merged(tmp_path / "plain.safetensors"))
