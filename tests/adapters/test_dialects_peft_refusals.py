"""What PEFT, diffusers and LyCORIS files are refused for, each by its code and with a remedy; and what is said of them."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeArgument=false, reportArgumentType=false, reportAttributeAccessIssue=false
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.peft_containers import (
    Made,
    canonical,
    deltas_of,
    diffusers_pipeline,
    draw,
    edit_config,
    lycoris_file,
    merged_delta,
    peft_folder,
)
from fluxsmith.adapters import Adapter
from fluxsmith.adapters.reading.opening import open_adapter
from fluxsmith.errors import FluxsmithError
from fluxsmith.io.references import open_reference
from fluxsmith.layouts import Bound
from support.tiny_flux import make_transformer

MODULES = ["attn.to_q", "proj_out"]
WEIGHTS = "adapter_model.safetensors"
STEM = "base_model.model.transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A stock PEFT LoRA, rank 3 and alpha 5; to be read only."""
    from peft import LoraConfig

    config = LoraConfig(r=3, lora_alpha=5, target_modules=MODULES)
    return peft_folder(make_transformer(1), config, tmp_path_factory.mktemp("lora") / "adapter")


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """What diffusers saves, with its header; to be read only."""
    from peft import LoraConfig

    config = LoraConfig(r=3, lora_alpha=5, target_modules=MODULES)
    return diffusers_pipeline(make_transformer(1), config, tmp_path_factory.mktemp("pipeline") / "adapter")


@pytest.fixture
def folder(lora: Made, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(lora.path, tmp_path / "copy"))


def _open(path: Path, base: Bound | None, **options: Any) -> Adapter:
    return open_adapter(open_reference(str(path), download=False), base=base, **options)


def _refused(path: Path, base: Bound | None, code: str, *words: str, **options: Any) -> None:
    with pytest.raises(FluxsmithError) as caught:
        _open(path, base, **options)
    assert caught.value.code == code, caught.value
    assert all(word in str(caught.value) for word in words), caught.value
    assert caught.value.fix


def _agrees(adapter: Adapter, base: Bound, weights: dict[str, Tensor], deltas: dict[str, Tensor]) -> bool:
    expected = canonical({name: t for name, t in base.spec.items()}, "diffusers", deltas)
    found = deltas_of(adapter, base, weights)
    near = all(torch.linalg.vector_norm(found[name] - delta) <= 1e-6 * torch.linalg.vector_norm(delta) for name, delta in expected.items())
    return found.keys() == expected.keys() and near


def _rewrite(file: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], metadata: dict[str, str] | None = None) -> None:
    save_file({key: tensor.contiguous().clone() for key, tensor in change(load_file(file)).items()}, file, metadata)


# -- the scale ------------------------------------------------------------------------------------------------------------


def test_peft_tensors_without_their_config(folder: Path, lora: Made, base: Bound, weights: dict[str, Tensor]) -> None:
    (folder / "adapter_config.json").unlink()
    _refused(folder, base, "adapter.missing-sidecar", "adapter_config.json", str(folder))
    _refused(folder / WEIGHTS, base, "adapter.missing-sidecar")
    assert _agrees(_open(folder, base, alpha=5), base, weights, lora.deltas)


def test_the_config_beside_a_named_file_is_read(lora: Made, base: Bound, weights: dict[str, Tensor]) -> None:
    assert _agrees(_open(lora.path / WEIGHTS, base), base, weights, lora.deltas)


def test_an_alpha_does_not_replace_what_the_config_says(lora: Made, base: Bound, weights: dict[str, Tensor]) -> None:
    assert _agrees(_open(lora.path, base, alpha=50), base, weights, lora.deltas)


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "rank": ({"r": 4}, "adapter.sidecar-contradicts", "rank 4"),
    "rank of some": ({"rank_pattern": {"proj_out": 2}}, "adapter.sidecar-contradicts", "proj_out"),
    "dora": ({"use_dora": True}, "adapter.sidecar-contradicts", "use_dora"),
    "no rank": ({"r": None}, "adapter.bad-sidecar", "`r`"),
    "rank zero": ({"r": 0}, "adapter.bad-sidecar", "`r`"),
    "alpha is text": ({"lora_alpha": "5"}, "adapter.bad-sidecar", "`lora_alpha`"),
    "no expression": ({"alpha_pattern": {"to_q(": 3}}, "adapter.bad-sidecar", "to_q("),
    "another method": ({"peft_type": "VERA"}, "adapter.peft-type", "VERA"),
    "pissa": ({"init_lora_weights": "pissa_niter_16"}, "adapter.changed-base", "pissa"),
    "olora": ({"init_lora_weights": "olora"}, "adapter.changed-base", "olora"),
    "corda": ({"init_lora_weights": "corda"}, "adapter.changed-base", "corda"),
    "qalora": ({"use_qalora": True}, "adapter.peft-option", "use_qalora"),
    "transposed": ({"fan_in_fan_out": True}, "adapter.peft-option", "fan_in_fan_out"),
    "from the future": ({"bends_space": 3}, "adapter.peft-option", "bends_space"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_configs_that_do_not_fit(case: str, folder: Path, base: Bound) -> None:
    fields, code, word = CONTRADICTIONS[case]
    edit_config(folder, **fields)
    _refused(folder, base, code, word)


def test_a_config_that_is_no_json(folder: Path, base: Bound) -> None:
    (folder / "adapter_config.json").write_text("{")
    _refused(folder, base, "file.bad-json", "adapter_config.json")


def test_pissa_is_read_once_peft_has_converted_it(base: Bound, weights: dict[str, Tensor], tmp_path: Path) -> None:
    """PiSSA moves a part of the base into the adapter; PEFT's own conversion takes it out again."""
    from peft import LoraConfig, get_peft_model

    model = make_transformer(1).float()
    before = {key: tensor.double() for key, tensor in model.state_dict().items()}
    wrapped = get_peft_model(model, LoraConfig(r=3, lora_alpha=5, target_modules=MODULES, init_lora_weights="pissa"))
    wrapped.peft_config["default"].init_lora_weights = True  # as PEFT asks for, to save the start
    wrapped.save_pretrained(tmp_path / "start")
    wrapped.peft_config["default"].init_lora_weights = "pissa"
    draw(wrapped.parameters())
    wrapped.save_pretrained(tmp_path / "raw")
    wrapped.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    merged = wrapped.double().merge_and_unload()
    _refused(tmp_path / "raw", base, "adapter.changed-base", "pissa")
    assert _agrees(_open(tmp_path / "converted", base), base, weights, merged_delta(before, merged.state_dict()))


# -- diffusers' header ------------------------------------------------------------------------------------------------------


def _header(made: Made, into: Path, text: str | None, **tensors: Tensor) -> Path:
    file = into / "file.safetensors"
    state = load_file(next(made.path.glob("*.safetensors")))
    save_file(
        {**state, **{key.replace("__", "."): tensor for key, tensor in tensors.items()}},
        file,
        {"lora_adapter_metadata": text} if text else None,
    )
    return file


FIELDS = {"transformer.r": 3, "transformer.lora_alpha": 5}


def test_headers_that_do_not_fit(pipeline: Made, base: Bound, tmp_path: Path) -> None:
    _refused(_header(pipeline, tmp_path, "[1]"), base, "adapter.bad-sidecar", "lora_adapter_metadata")
    _refused(_header(pipeline, tmp_path, "{"), base, "adapter.bad-sidecar", "lora_adapter_metadata")
    _refused(_header(pipeline, tmp_path, json.dumps({**FIELDS, "transformer.r": 4})), base, "adapter.sidecar-contradicts", "rank 4")
    alpha = {"transformer.proj_out.alpha".replace(".", "__"): torch.tensor(9.0)}
    _refused(_header(pipeline, tmp_path, json.dumps(FIELDS), **alpha), base, "adapter.sidecar-contradicts", "alpha")
    assert _open(_header(pipeline, tmp_path, json.dumps(FIELDS)), base).metadata["lora_adapter_metadata"] == FIELDS


def test_the_two_strengths_of_a_file_are_told(pipeline: Made, base: Bound, tmp_path: Path) -> None:
    assert any("at scale 1" in note for note in _open(pipeline.path, base).notes)
    assert any("it is 1" in note for note in _open(_header(pipeline, tmp_path, None), base).notes)
    same = json.dumps({**FIELDS, "transformer.lora_alpha": 3})
    assert not _open(_header(pipeline, tmp_path, same), base).notes


# -- tensors ----------------------------------------------------------------------------------------------------------------


def test_half_a_module(folder: Path, base: Bound) -> None:
    _rewrite(folder / WEIGHTS, lambda state: {key: tensor for key, tensor in state.items() if key != f"{STEM}.lora_B.weight"})
    _refused(folder, base, "adapter.half-module", STEM)


def test_factors_of_different_ranks(folder: Path, base: Bound) -> None:
    _rewrite(folder / WEIGHTS, lambda state: {**state, f"{STEM}.lora_B.weight": torch.ones(48, 4)})
    _refused(folder, base, "adapter.rank-mismatch", STEM)


def test_another_width(folder: Path, base: Bound) -> None:
    _rewrite(folder / WEIGHTS, lambda state: {**state, f"{STEM}.lora_B.weight": torch.ones(64, 3)})
    _refused(folder, base, "adapter.wrong-width", "48")


def test_two_adapters_in_one_file(folder: Path, base: Bound) -> None:
    name = f"{STEM}.lora_A.second.weight"
    _rewrite(folder / WEIGHTS, lambda state: {**state, name: state[f"{STEM}.lora_A.weight"]})
    _refused(folder, base, "adapter.duplicate-key", name)


def test_a_block_that_the_base_lacks(folder: Path, base: Bound) -> None:
    deep = STEM.replace("blocks.0", "blocks.9")
    _rewrite(folder / WEIGHTS, lambda state: {**state, **{key.replace(STEM, deep): t for key, t in state.items() if key.startswith(STEM)}})
    _refused(folder, base, "adapter.unmatched-keys", deep)


def test_an_unknown_factor(folder: Path, base: Bound) -> None:
    _rewrite(folder / WEIGHTS, lambda state: {**state, f"{STEM}.lora_E": torch.ones(3, 1)})
    _refused(folder, base, "adapter.unmatched-keys", "lora_E")
    assert f"{STEM}.lora_E" in _open(folder, base, ignore=["*.lora_E"]).dropped


def test_a_bias_twice(base: Bound, tmp_path: Path) -> None:
    from peft import LoraConfig

    config = LoraConfig(r=3, lora_alpha=5, target_modules=MODULES, bias="lora_only", lora_bias=True)
    _refused(peft_folder(make_transformer(1), config, tmp_path / "adapter").path, base, "adapter.unknown-module", "set_bias")


def test_text_encoders_are_used_or_dropped_by_rule(pipeline: Made, base: Bound, tmp_path: Path) -> None:
    stem = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    tensors = {f"{stem}.lora_A.weight": torch.ones(3, 8), f"{stem}.lora_B.weight": torch.ones(8, 3)}
    file = _header(pipeline, tmp_path, json.dumps(FIELDS), **{key.replace(".", "__"): t for key, t in tensors.items()})
    _refused(file, base, "adapter.unmatched-keys", "clip_l", "components: [transformer]")
    adapter = _open(file, base, components=["transformer"])
    assert set(adapter.dropped) == set(tensors)


def test_a_rotation_does_not_tell_the_size_of_its_model(tmp_path: Path) -> None:
    from peft import OFTConfig

    made = peft_folder(make_transformer(1), OFTConfig(oft_block_size=8, target_modules=MODULES), tmp_path / "adapter")
    _refused(made.path, None, "adapter.needs-base", "flux1")


# -- LyCORIS ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"algo": "lora"}, {"algo": "lokr", "factor": 4}, {"algo": "loha"}])
@pytest.mark.parametrize("alpha", [float("inf"), float("nan")])
def test_an_alpha_beside_a_rank_is_finite(options: dict[str, Any], alpha: float, base: Bound, tmp_path: Path) -> None:
    """An infinite alpha is legal for a LoKr of two whole matrices only, which is read (test_dialects_peft.py)."""
    blocks = ["FluxTransformerBlock"]
    made = lycoris_file(make_transformer(1), blocks, tmp_path / "a.safetensors", linear_dim=2, linear_alpha=5, **options)
    _rewrite(made.path, lambda state: {key: torch.tensor(alpha) if key.endswith("alpha") else tensor for key, tensor in state.items()})
    _refused(made.path, base, "adapter.not-finite", "alpha")
