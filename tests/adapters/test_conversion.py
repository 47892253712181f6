"""Adapters converted to every dialect that is written: the same delta, or an error that names what cannot be held."""

# pyright: reportMissingTypeStubs=false
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from adapters.containers import Container, Numbers, agree, deltas_of, factors, lycoris, opened
from adapters.peft_containers import deltas_of as stock_deltas
from adapters.test_dialects_kohya import lora
from fluxsmith.adapters.converting.files import Outcome, convert
from fluxsmith.adapters.dialects import DIALECTS
from fluxsmith.adapters.module import Adapter
from fluxsmith.adapters.reading.opening import open_adapter
from fluxsmith.errors import IncompatibleError, UsageError
from fluxsmith.io.references import open_reference
from fluxsmith.layouts import Bound

Weights = dict[str, Tensor]

WRITTEN = [name for name, dialect in DIALECTS.items() if dialect.writing is not None]


def converted(adapter: Adapter, folder: Path, dialect: str, base: Bound | None, **options: Any) -> tuple[Adapter, Outcome]:
    """The adapter after it was written and opened again; every key of the new file is used."""
    writing = DIALECTS[dialect].writing
    assert writing is not None
    target = folder / (dialect if writing.folder else f"{dialect}.safetensors")
    outcome = convert(adapter, target, DIALECTS[dialect], base=options.pop("weight", base), **options)
    found = open_adapter(open_reference(str(target), download=False), base=base)
    assert found.dropped == {}
    return found, outcome


@pytest.mark.parametrize("dialect", [name for name in WRITTEN if name not in ("xlabs", "bfl-control")])
def test_lora_in_every_dialect_and_back(dialect: str, tmp_path: Path, base: Bound, weights: Weights) -> None:
    """kohya's LoRA of every linear layer. Where the scale is not multiplied into the factors, the way back gives the bytes of
    the source again: parts of one matrix still share their `down`."""
    source = lora(weights)
    adapter = opened(source, tmp_path, base)
    there, _ = converted(adapter, tmp_path, dialect, base)
    agree(deltas_of(there, weights) if dialect != "peft" else stocked(there, base, weights), source.deltas)
    (tmp_path / "back").mkdir()
    back, _ = converted(there, tmp_path / "back", "kohya", base)
    agree(deltas_of(back, weights), source.deltas)
    if dialect != "ai-toolkit":
        again = load_file(tmp_path / "back" / "kohya.safetensors")
        assert all(torch.equal(again[key], tensor) for key, tensor in source.tensors.items() if "lora_" in key.partition(".")[2])


def stocked(adapter: Adapter, base: Bound, weights: Weights) -> dict[str, Tensor]:
    return {name: delta.float() for name, delta in stock_deltas(adapter, base, weights).items()}


SOURCES = {
    "loha": ("loha", {}), "lokr": ("lokr", {"factor": 4}), "full lokr": ("lokr", {"full_matrix": True}), "full": ("full", {}),
    "oft": ("diag-oft", {}), "ia3": ("ia3", {}), "dora": ("lora", {"dora_wd": True}),
    "dora of columns": ("lora", {"dora_wd": True, "wd_on_output": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_every_algorithm_in_every_dialect(name: str, tmp_path: Path, base: Bound, weights: Weights) -> None:
    """LyCORIS' adapters of fused tensors. What a dialect cannot hold is refused before anything is written; every other
    result adds what LyCORIS' own modules add."""
    algo, options = SOURCES[name]
    container = lycoris(weights, algo, 3, **options)
    adapter = opened(container, tmp_path, base)
    held: set[str] = set()
    for dialect in WRITTEN:
        try:
            there, _ = converted(adapter, tmp_path, dialect, base)
        except IncompatibleError as error:
            assert error.code == "adapter.algorithm"
            assert error.fix
            assert not list(tmp_path.glob(f"*{dialect}.*"))
            continue
        held.add(dialect)
        agree(stocked(there, base, weights), container.deltas, 1e-5)
    assert held >= {"kohya", "lycoris", "comfy"}
    assert ("diffusers" in held) == (name == "dora")
    assert ("peft" in held) == (name in ("dora", "loha"))


@pytest.mark.parametrize("name", SOURCES)
def test_pure_parts_keep_their_bytes(name: str, tmp_path: Path, base: Bound, weights: Weights) -> None:
    """A fused matrix's parts have the rows of its factors, byte for byte."""
    algo, options = SOURCES[name]
    adapter = opened(lycoris(weights, algo, 3, **options), tmp_path, base)
    _, outcome = converted(adapter, tmp_path, "lycoris", base)
    if outcome.ways.get("dense"):
        assert name in ("oft", "dora of columns", "lokr", "full lokr")
        return
    source, parts = load_file(tmp_path / "adapter.safetensors"), load_file(tmp_path / "lycoris.safetensors")
    fused = "lora_unet_double_blocks_0_txt_attn_qkv"
    for key in [key for key in source if key.startswith(f"{fused}.") and not key.endswith(("alpha", "on_input"))]:
        role = key.removeprefix(f"{fused}.")
        pieces = [parts[f"lycoris_transformer_blocks_0_attn_add_{part}_proj.{role}"] for part in "qkv"]
        whole = source[key]
        assert torch.equal(torch.cat(pieces), whole) or all(torch.equal(piece, whole) for piece in pieces)


def test_parts_that_are_not_there_are_zero(tmp_path: Path, base: Bound, weights: Weights) -> None:
    """Of q, k, v and the MLP only k is in the file: fused, the others' rows are zero, and the rank stays k's."""
    numbers = Numbers.seeded(4)
    down, up = factors(numbers, (48, 48))
    stem = "transformer.single_transformer_blocks.1.attn.to_k"
    part = Container({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up})
    part.add("single_blocks.1.linear1.weight", up @ down, (336, 48), 48)
    there, outcome = converted(opened(part, tmp_path, base), tmp_path, "kohya", base)
    assert outcome.ways == {"joined": 1}
    assert there.modules[0].factors["down"].shape == down.shape
    agree(deltas_of(there, weights), part.deltas)


def test_widths_are_told_by_parts(tmp_path: Path, base: Bound, weights: Weights) -> None:
    """Of all single blocks only parts of linear1 are in the file; without a base they say how deep and wide the model is."""
    numbers = Numbers.seeded(6)
    part = Container()
    for number, (rows, at) in enumerate(((48, 0), (192, 144))):
        down, up = factors(numbers, (rows, 48))
        stem = f"transformer.single_blocks.1.linear1.{3 * number}"
        part.tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        part.add("single_blocks.1.linear1.weight", up @ down, (336, 48), at)
    adapter = opened(part, tmp_path, base)
    assert adapter.dialect == "onetrainer-bfl"
    there, outcome = converted(adapter, tmp_path, "kohya", base, weight=None)
    assert outcome.notes == ()
    agree(deltas_of(there, weights), part.deltas)


def test_parts_of_different_strength(tmp_path: Path, base: Bound, weights: Weights) -> None:
    """q, k and v with their own ranks and alphas: one alpha is left, the rest is in `up`, in fp32 where bf16 cannot hold it."""
    numbers, part = Numbers.seeded(7), Container()
    for i, (name, alpha) in enumerate((("q", 1.0), ("k", 7.0), ("v", 0.3))):
        down, up = (factor.bfloat16() for factor in factors(numbers, (48, 48)))
        stem = f"lycoris_transformer_blocks_0_attn_to_{name}"
        part.tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(alpha)}
        part.add("double_blocks.0.img_attn.qkv.weight", alpha / len(down) * up.float() @ down.float(), (144, 48), 48 * i)
    there, outcome = converted(opened(part, tmp_path, base), tmp_path, "kohya", base)
    assert outcome.ways == {"joined": 1}
    agree(deltas_of(there, weights), part.deltas, 1e-6)


def test_width_of_the_mlp_is_told_or_assumed(tmp_path: Path, base: Bound, weights: Weights) -> None:
    """Without a base, q alone does not say how wide linear1 is: it is what published models have, and that is noted."""
    numbers = Numbers.seeded(5)
    down, up = factors(numbers, (48, 48))
    stem = "transformer.single_transformer_blocks.0.attn.to_q"
    part = Container({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up})
    part.add("single_blocks.0.linear1.weight", up @ down, (336, 48))
    adapter = opened(part, tmp_path, None)
    outcome = convert(adapter, tmp_path / "k.safetensors", DIALECTS["kohya"])
    assert "4 x H = 192" in outcome.notes[0]
    assert convert(adapter, tmp_path / "d.safetensors", DIALECTS["diffusers"]).notes == ()  # q stays q there
    agree(deltas_of(open_adapter(open_reference(str(tmp_path / "k.safetensors"), download=False), base=base), weights), part.deltas)


def test_xlabs_holds_attention_only(tmp_path: Path, base: Bound, weights: Weights) -> None:
    """A LoRA of linear1 also has rows of the MLP, for which XLabs has no place: nothing is dropped in silence."""
    adapter = opened(lora(weights), tmp_path, base)
    with pytest.raises(IncompatibleError, match="no place") as raised:
        converted(adapter, tmp_path, "xlabs", base)
    assert raised.value.code == "adapter.no-place"
    only = open_adapter(adapter.checkpoint, base=base, ignore=["*mod*", "*mlp*", "*_in*", "*final*", "*linear2*"])
    with pytest.raises(IncompatibleError, match=r"all rows of .*linear1"):
        converted(only, tmp_path, "xlabs", base)
    assert not (tmp_path / "xlabs.safetensors").exists()
    attention = open_adapter(adapter.checkpoint, base=base, ignore=["*mod*", "*mlp*", "*_in*", "*final*", "*linear1*"])
    there, _ = converted(attention, tmp_path, "xlabs", base)
    assert there.dialect == "xlabs"
    expected = {name: d for name, d in lora(weights).deltas.items() if "attn" in name or "linear2" in name}
    agree(deltas_of(there, weights), expected)


def test_what_multiplies_needs_the_base(tmp_path: Path, base: Bound, weights: Weights) -> None:
    adapter = opened(lycoris(weights, "diag-oft", 3), tmp_path, base)
    with pytest.raises(IncompatibleError) as raised:
        converted(adapter, tmp_path, "lycoris", base, weight=None)
    assert raised.value.code == "adapter.needs-base"
    assert "--base" in str(raised.value.fix)


def test_nearest_lora(tmp_path: Path, base: Bound, weights: Weights) -> None:
    """`--as lora` of a LoKr: what is lost is said, and is what is lost; at full rank it is nothing."""
    from fluxsmith.adapters.extracting.rank import RankRule

    container = lycoris(weights, "lokr", 3, factor=4)
    adapter = opened(container, tmp_path, base)
    with pytest.raises(UsageError, match="--rank"):
        converted(adapter, tmp_path, "diffusers", base, shape="lora")
    there, outcome = converted(adapter, tmp_path, "comfy", base, shape="lora", rule=RankRule("rank", 4))
    found = deltas_of(there, weights)
    name = "double_blocks.0.img_mlp.0.weight"
    lost = float((found[name] - container.deltas[name]).norm() / container.deltas[name].norm())
    assert outcome.residuals[name] == pytest.approx(lost, rel=1e-3)
    best = torch.linalg.svdvals(container.deltas[name].double())[4:].norm() / container.deltas[name].double().norm()
    assert lost == pytest.approx(float(best), rel=0.02)
    (tmp_path / "full").mkdir()
    there, _ = converted(adapter, tmp_path / "full", "diffusers", base, shape="lora", rule=RankRule("rank", 48))
    agree(deltas_of(there, weights), container.deltas, 1e-5)


def test_dtype_is_kept_unless_another_is_asked_for(tmp_path: Path, base: Bound, weights: Weights) -> None:
    half = lora(weights)
    half.tensors = {key: tensor.bfloat16() if "lora_" in key.partition(".")[2] else tensor for key, tensor in half.tensors.items()}
    adapter = opened(half, tmp_path, base)
    expected = deltas_of(adapter, weights)
    there, _ = converted(adapter, tmp_path, "diffusers", base)
    assert {str(t.dtype) for t in load_file(tmp_path / "diffusers.safetensors").values()} == {"torch.bfloat16"}
    agree(deltas_of(there, weights), expected, 1e-6)
    there, _ = converted(adapter, tmp_path, "ai-toolkit", base)  # the scale goes into the factors: fp32 where bf16 cannot hold it
    agree(deltas_of(there, weights), expected, 1e-6)
    _, _ = converted(adapter, tmp_path, "comfy", base, dtype="fp16")
    names = {str(t.dtype) for key, t in load_file(tmp_path / "comfy.safetensors").items() if "lora_" in key}
    assert names == {"torch.float16"}
    half.tensors = {key: tensor * 1e5 if "lora_up" in key else tensor for key, tensor in half.tensors.items()}
    with pytest.raises(IncompatibleError, match="too large for float16"):
        converted(opened(half, tmp_path, base), tmp_path, "original", base, dtype="fp16")
    assert not (tmp_path / "original.safetensors").exists()


def test_metadata_is_kept_or_named(tmp_path: Path, base: Bound, weights: Weights) -> None:
    source = lora(weights)
    source.metadata = {"ss_output_name": "style", "modelspec.trigger_phrase": "ohwx", "sshs_model_hash": "ab", "ss_network_dim": "16"}
    _, outcome = converted(opened(source, tmp_path, base), tmp_path, "diffusers", base)
    found: Mapping[str, str] = safe_open(tmp_path / "diffusers.safetensors", "pt").metadata()
    assert found["ss_output_name"] == "style"
    assert found["modelspec.trigger_phrase"] == "ohwx"
    assert found["modelspec.architecture"] == "flux-1-dev/lora"
    assert found["format"] == "pt"
    assert "sshs_model_hash" not in found
    assert outcome.notes[-1].endswith("ss_network_dim, sshs_model_hash")
    assert "--to ai-toolkit" in outcome.notes[0]
    assert "blake3:" in found["fluxsmith.adapter"]


def test_target_is_replaced_only_when_asked(tmp_path: Path, base: Bound, weights: Weights) -> None:
    adapter = opened(lora(weights), tmp_path, base)
    converted(adapter, tmp_path, "peft", base)
    first = (tmp_path / "peft" / "adapter_config.json").read_text()
    with pytest.raises(UsageError, match="exists"):
        converted(adapter, tmp_path, "peft", base)
    converted(adapter, tmp_path, "peft", base, force=True)
    with pytest.raises(IncompatibleError, match="the adapter itself"):
        convert(adapter, tmp_path / "adapter.safetensors", DIALECTS["kohya"], force=True)
    assert (tmp_path / "peft" / "adapter_config.json").read_text() == first
    (tmp_path / "kohya.safetensors").mkdir()
    (tmp_path / "kohya.safetensors" / "mine.txt").write_text("x")
    with pytest.raises(UsageError):
        converted(adapter, tmp_path, "kohya", base, force=True)
    assert (tmp_path / "kohya.safetensors" / "mine.txt").exists()
