"""GGUF as it is written: bytes against gguf.quants, files against gguf.GGUFReader, diffusers and ourselves."""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize

import fluxsmith as fs
from fluxsmith.errors import IncompatibleError, UsageError
from fluxsmith.io.codecs.encoding import encode_blocks
from support.tiny_flux import TinyCheckpoints, make_transformer, save_diffusers, tensors_of
from support.wide_flux import WIDTH_64, Wide, flux_inputs

KINDS = ["Q8_0", "Q4_0"]


def rows() -> torch.Tensor:
    """Rows with what quantisers trip over: zeros, ties, halves, one large value, tiny ones, a negative largest."""
    random = torch.Generator().manual_seed(0)
    special = torch.stack([
        torch.zeros(64), torch.ones(64), torch.full((64,), -2.0), torch.arange(64) / 127.0, torch.arange(64) - 31.5,
        torch.cat([torch.tensor([127.0, 0.5, -0.5, 1.5, -1.5, 2.5]), torch.zeros(58)]), torch.full((64,), 1e-9),
        torch.cat([torch.tensor([3.0, -3.0]), torch.zeros(62)]),
    ])  # fmt: skip
    return torch.cat([special, torch.randn(200, 64, generator=random), torch.randn(200, 64, generator=random).bfloat16().float()])


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_those_of_ggml_bit_for_bit(kind: str) -> None:
    values = rows()
    encoded = encode_blocks(values.reshape(-1), kind)
    expected = quantize(values.numpy(), GGMLQuantizationType[kind])
    assert encoded.stored.numpy().tobytes() == expected.tobytes()
    assert np.array_equal(encoded.values.numpy().reshape(values.shape), dequantize(expected, GGMLQuantizationType[kind]))


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0", "bf16", "fp16", "fp32"])
def test_files_are_read_by_the_gguf_package(dtype: str, wide: Wide, tmp_path: Path) -> None:
    fs.merge(str(wide.folder), tmp_path / "out.gguf", dtype=dtype)
    reader = GGUFReader(tmp_path / "out.gguf")
    assert reader.fields["general.architecture"].contents() == "flux"
    assert f"dtype: {dtype}" in reader.fields["fluxsmith.recipe"].contents()
    number = {"q8_0": 7, "q4_0": 2, "bf16": 32, "fp16": 1, "fp32": 0}[dtype]
    assert reader.fields["general.file_type"].contents() == number  # gguf.LlamaFileType
    assert [tensor.name for tensor in reader.tensors if tensor.data_offset % 32] == []
    assert (tmp_path / "out.gguf").stat().st_size % 32 == 0
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert set(found) == set(wide.tensors)
    plain = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}.get(dtype, "BF16")
    for name, weight in wide.tensors.items():
        tensor, values = found[name], weight.float().numpy()
        small = weight.ndim == 1 or weight.numel() <= 1024
        quantised = dtype.upper() in KINDS and "_blocks." in name and not small
        expected = "F32" if small else dtype.upper() if quantised else plain
        assert tensor.tensor_type.name == expected, name
        assert tensor.shape.tolist() == list(weight.shape)[::-1]
        stored = quantize(values, GGMLQuantizationType[expected])
        assert tensor.data.tobytes() == stored.tobytes(), name


def test_rows_that_are_no_whole_blocks_stay_bf16(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    fs.merge(str(tiny.a), tmp_path / "out.gguf", dtype="q8_0")
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "out.gguf").tensors}
    assert types["double_blocks.0.img_attn.qkv.weight"] == "BF16"  # 48 columns
    assert types["double_blocks.0.img_mlp.2.weight"] == "Q8_0"  # 192


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_runs_the_file(kind: str, wide: Wide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import FluxTransformer2DModel, GGUFQuantizationConfig
    from diffusers.loaders import single_file_model, single_file_utils

    # Its converter knows published widths only: the one number 3072 in its code becomes 64, all else is as it ships.
    stock: Any = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
    code = stock.__code__.replace(co_consts=tuple(64 if value == 3072 else value for value in stock.__code__.co_consts))
    table: Any = single_file_model.SINGLE_FILE_LOADABLE_CLASSES
    convert = type(stock)(code, stock.__globals__, stock.__name__, stock.__defaults__)
    monkeypatch.setitem(table["FluxTransformer2DModel"], "checkpoint_mapping_fn", convert)

    fs.merge(str(wide.folder), tmp_path / "out.gguf", dtype=kind.lower())
    model = FluxTransformer2DModel.from_single_file(
        str(tmp_path / "out.gguf"), config=str(wide.folder), quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        torch_dtype=torch.float32,
    )  # fmt: skip
    assert type(model.get_submodule("transformer_blocks.0.attn.to_q")).__name__ == "GGUFLinear"
    fs.merge(str(tmp_path / "out.gguf"), tmp_path / "plain", layout="diffusers", dtype="fp32")
    plain = FluxTransformer2DModel.from_pretrained(tmp_path / "plain", torch_dtype=torch.float32)
    with torch.no_grad():
        here, there = model(**flux_inputs()).sample, plain(**flux_inputs()).sample
    assert (here - there).norm() < 1e-3 * there.norm()  # diffusers multiplies with scales in float16


def test_only_gguf_files_have_block_types_and_they_have_no_others(wide: Wide, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="q8_0 is a type of GGUF files") as error:
        fs.merge(str(wide.file), tmp_path / "out.safetensors", dtype="q8_0")
    assert str(tmp_path / "out.gguf") in str(error.value.fix)
    for dtype in ("fp8_e4m3", "fp8_scaled", "int8_torchao"):
        with pytest.raises(UsageError, match=f"a GGUF file cannot hold {dtype}"):
            fs.merge(str(wide.file), tmp_path / "out.gguf", dtype=dtype)
    with pytest.raises(UsageError, match="has the bfl layout, not diffusers"):
        fs.merge(str(wide.file), tmp_path / "out.gguf", layout="diffusers")
    with pytest.raises(UsageError, match="shards were asked for"):
        fs.merge(str(wide.file), tmp_path / "out.gguf", shard_size="1MB")
    assert not list(tmp_path.iterdir())


def test_families_without_a_gguf_form_are_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"layers.0.weight": torch.ones(64, 64)}, tmp_path / "in.safetensors")
    with pytest.raises(IncompatibleError, match="structural has no GGUF form"):
        fs.merge(str(tmp_path / "in.safetensors"), tmp_path / "out.gguf")


def test_fp8_and_fp32_inputs(tmp_path: Path) -> None:
    model = make_transformer(1, **WIDTH_64).float()
    save_diffusers(model, tmp_path / "fp32")
    fs.merge(str(tmp_path / "fp32"), tmp_path / "fp8.safetensors", dtype="fp8_e4m3", layout="bfl")
    for name, kind in (("fp32", "F32"), ("fp8.safetensors", "BF16")):
        fs.merge(str(tmp_path / name), tmp_path / f"{kind}.gguf")
        types = {t.tensor_type.name for t in GGUFReader(tmp_path / f"{kind}.gguf").tensors if len(t.shape) == 2 and t.n_elements > 1024}
        assert types == {kind}
        fs.merge(str(tmp_path / name), tmp_path / "want.safetensors", dtype="fp32", layout="bfl", force=True)
        fs.merge(str(tmp_path / f"{kind}.gguf"), tmp_path / "have.safetensors", dtype="fp32", force=True)
        want, have = tensors_of(tmp_path / "want.safetensors"), tensors_of(tmp_path / "have.safetensors")
        assert all(torch.equal(have[key], want[key]) for key in want)
