"""Quantised files that cannot be read are refused by name: other schemes, missing halves, scales that do not fit."""

import importlib.util
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fluxsmith as fs
from fluxsmith.errors import FluxsmithError
from quantised.producers import Stored, comfy, comfy_legacy, gguf_file, int8, nf4, sd_scripts
from support.cli_runs import run_cli

Tensors = dict[str, Tensor]
Change = Callable[[Stored], None]
BYTES = torch.zeros(8, dtype=torch.uint8)


def weights() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(8, 64, generator=generator).bfloat16() for key in ("a.weight", "b.weight")} | {"a.bias": torch.zeros(8)}


def without(*keys: str) -> Change:
    def change(stored: Stored) -> None:
        for key in keys:
            del stored.tensors[key]

    return change


def adding(**tensors: Tensor) -> Change:
    return lambda stored: stored.tensors.update({key.replace("__", "."): tensor for key, tensor in tensors.items()})


def with_keys(tensors: Tensors) -> Change:
    return lambda stored: stored.tensors.update(tensors)


def marked(text: str) -> Change:
    return with_keys({"a.comfy_quant": torch.tensor(list(text.encode()), dtype=torch.uint8)})


def listed(text: str) -> Change:
    return lambda stored: stored.metadata.update(_quantization_metadata=text)


def of_kind(kind: str) -> Change:
    def change(stored: Stored) -> None:
        fields = json.loads(stored.metadata["a.weight"])
        stored.metadata["a.weight"] = json.dumps({**fields, "_type": kind})

    return change


HALF, SCALE, OTHER = "quantised.missing-half", "quantised.bad-scale", "model.quantised"
STATE = "a.weight.quant_state.bitsandbytes__nf4"

# (what is wrong, producer, change, code, words that the message must have)
CASES: list[tuple[str, Callable[[Tensors], Stored], Change, str, list[str]]] = [
    ("legacy fp8 weight without scale", comfy_legacy, without("b.scale_weight"), HALF, ["b.weight", "b.scale_weight"]),
    ("legacy scale without weight", comfy_legacy, without("b.weight"), HALF, ["b.scale_weight", "b.weight"]),
    ("new fp8 weight without scale", comfy, without("b.weight_scale"), HALF, ["b.weight", "b.weight_scale"]),
    ("new scale without weight", comfy, without("b.weight"), HALF, ["b.weight_scale", "b.weight"]),
    ("mark without weight", comfy, without("b.weight", "b.weight_scale"), HALF, ["b.comfy_quant", "b.weight"]),
    ("mark of an fp8 file without any scale", comfy_legacy, without("a.scale_weight", "b.scale_weight"), HALF, ["scale_weight"]),
    ("sd-scripts weight without scale", sd_scripts, without("b.scale_weight"), HALF, ["b.weight", "b.scale_weight"]),
    ("scale of other rows", sd_scripts, adding(b__scale_weight=torch.ones(7, 1)), SCALE, ["b.scale_weight", "[8, 1]", "[7, 1]"]),
    ("scale of blocks that do not fit", sd_scripts, adding(b__scale_weight=torch.ones(8, 5, 1)), SCALE, ["b.scale_weight", "[8, 5, 1]"]),
    ("integer scale", comfy, adding(b__weight_scale=torch.ones(1, dtype=torch.int32)), SCALE, ["b.weight_scale", "I32"]),
    ("scale beside plain weight", comfy_legacy, adding(b__weight=torch.ones(8, 64)), "quantised.plain-weight", ["b.weight", "F32"]),
    ("input factors of another width", comfy, adding(a__pre_quant_scale=torch.ones(3)), SCALE, ["a.pre_quant_scale", "[64]"]),
    ("ComfyUI's nvfp4", comfy, marked('{"format": "nvfp4"}'), OTHER, ["nvfp4", "a.comfy_quant"]),
    ("a list with another format", lambda t: comfy(t, marks=False), listed('{"layers": {"a": {"format": "mxfp8"}}}'), OTHER, ["mxfp8"]),
    ("a list that is no JSON", lambda t: comfy(t, marks=False), listed("{"), SCALE, ["_quantization_metadata"]),
    ("a list of nothing", lambda t: comfy(t, marks=False), listed("[]"), SCALE, ["_quantization_metadata"]),
    ("a mark that is no JSON", comfy, marked("\\"), SCALE, ["a.comfy_quant"]),
    ("a mark that says nothing", comfy, marked("[1]"), OTHER, ["a.comfy_quant"]),
    ("int8 by ComfyUI", comfy, with_keys({"a.weight": BYTES.view(torch.int8).repeat(8, 8)}), OTHER, ["a.weight", "I8"]),
    ("NF4 without quant_state", nf4, without(STATE), HALF, ["a.weight", STATE]),
    ("NF4 without absmax", nf4, without("a.weight.absmax"), HALF, ["a.weight.absmax"]),
    ("NF4 without quant_map", nf4, without("a.weight.quant_map"), HALF, ["a.weight.quant_map"]),
    ("NF4 scales without weight", nf4, without("a.weight"), HALF, ["a.weight.absmax", "a.weight"]),
    ("nested NF4 without its scales", lambda t: nf4(t, nested=True), without("a.weight.nested_absmax"), HALF, ["a.weight.nested_absmax"]),
    ("NF4 with another number of scales", nf4, with_keys({"a.weight.absmax": torch.ones(3)}), SCALE, ["a.weight.absmax", "8 values", "3"]),
    ("NF4 of another size", nf4, with_keys({"a.weight": BYTES.reshape(8, 1)}), SCALE, ["a.weight", "256 bytes", "8 bytes"]),
    ("NF4 whose state is no JSON", nf4, with_keys({STATE: BYTES}), SCALE, [STATE]),
    ("NF4 whose state has no shape", nf4, with_keys({STATE: torch.tensor(list(b"{}"), dtype=torch.uint8)}), SCALE, [STATE]),
    ("bitsandbytes int8", int8, with_keys({"c.SCB": torch.ones(8)}), OTHER, ["bitsandbytes int8", "c.SCB"]),
    ("quanto", comfy, with_keys({"c.weight._data": BYTES, "c.weight._scale": torch.ones(1)}), OTHER, ["quanto", "c.weight._"]),
    ("nunchaku", comfy, with_keys({"c.qweight": BYTES, "c.wscales": torch.ones(1)}), OTHER, ["nunchaku", "c."]),
    ("GPTQ", comfy, with_keys({"c.qweight": BYTES, "c.qzeros": BYTES.clone()}), OTHER, ["GPTQ", "c.qzeros"]),
    ("torchao without scales", int8, without("a._weight_scale"), HALF, ["a._weight_qdata", "a._weight_scale"]),
    ("torchao without numbers", int8, without("a._weight_qdata"), HALF, ["a._weight_qdata"]),
    ("torchao's float8", int8, of_kind("Float8Tensor"), OTHER, ["Float8Tensor", "a.weight"]),
    ("torchao's int4", int8, of_kind("Int4Tensor"), OTHER, ["Int4Tensor"]),
    ("torchao with groups", int8, with_keys({"a._weight_scale": torch.ones(8, 2)}), SCALE, ["a._weight_scale", "[8, 2]"]),
    ("torchao with scaled inputs", int8, with_keys({"a._weight_act_pre_scale": torch.ones(64)}), OTHER, ["a._weight_act_pre_scale"]),
    ("torchao's numbers in another type", int8, with_keys({"a._weight_qdata": torch.ones(8, 64)}), OTHER, ["F32", "a._weight_qdata"]),
]  # fmt: skip


@pytest.mark.parametrize(("produce", "change", "code", "words"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_refused_by_name(produce: Callable[[Tensors], Stored], change: Change, code: str, words: list[str], tmp_path: Path) -> None:
    stored = produce(weights())
    assert fs.plan(str(stored.save(tmp_path / "whole.safetensors")))
    change(stored)
    file = stored.save(tmp_path / "q.safetensors")
    with pytest.raises(FluxsmithError) as caught:
        fs.plan(str(file))
    text = str(caught.value)
    assert caught.value.code == code, text
    assert all(word in text for word in [*words, str(file)]), text
    assert caught.value.fix
    shown = run_cli("inspect", file)  # which refuses nothing that has a header, but says that a merge would
    assert shown.code == 0
    assert f"[{code}]" in shown.out


def test_a_gguf_type_that_nobody_decodes_is_named(tmp_path: Path) -> None:
    data = bytearray(_small_gguf(tmp_path).read_bytes())
    at = data.index(b"a.weight") + len("a.weight") + 4 + 16
    data[at : at + 4] = struct.pack("<I", 41)
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(FluxsmithError, match="type 41") as caught:
        fs.plan(str(tmp_path / "m.gguf"))
    assert (caught.value.code, caught.value.facts["key"]) == (OTHER, "a.weight")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_gguf_that_is_cut_short(share: float, tmp_path: Path) -> None:
    data = _small_gguf(tmp_path).read_bytes()
    (tmp_path / "m.gguf").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(FluxsmithError) as caught:
        fs.plan(str(tmp_path / "m.gguf"))
    assert caught.value.code == "file.truncated"


def test_every_cut_and_every_wrong_byte_of_a_gguf_header_is_an_error_or_harmless(tmp_path: Path) -> None:
    data, random = _small_gguf(tmp_path).read_bytes(), torch.Generator().manual_seed(0)
    file = tmp_path / "m.gguf"
    for at in range(data.index(b"b.weight") + 40):
        changed = bytearray(data)
        changed[at] = int(torch.randint(0, 256, (), generator=random))
        for variant in (data[: at + 1], bytes(changed)):
            file.write_bytes(variant)
            try:
                fs.plan(str(file))
            except FluxsmithError as error:
                assert error.code.split(".")[0] in ("file", "model"), error


def _small_gguf(folder: Path) -> Path:
    gguf_file(folder / "whole.gguf", weights(), "Q8_0")
    return folder / "whole.gguf"


def test_without_the_package_gguf_is_an_error_with_the_line_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf_file(tmp_path / "m.gguf", weights(), "Q8_0")
    gguf_file(tmp_path / "plain.gguf", {"a.bias": torch.zeros(8)})
    found = importlib.util.find_spec
    monkeypatch.setattr("fluxsmith.io.codecs.gguf.find_spec", lambda name: None if name == "gguf" else found(name))
    with pytest.raises(FluxsmithError) as caught:
        fs.plan(str(tmp_path / "m.gguf"))
    assert caught.value.fix == "pip install 'fluxsmith[gguf]'"
    assert fs.plan(str(tmp_path / "plain.gguf"))  # nothing to decode
