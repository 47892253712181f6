"""Adapters that cannot be meant (formats.md 4.2 (11)): each is refused by its own code, naming file, key and remedy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fluxsmith.adapters import Adapter
from fluxsmith.adapters.dialects import DIALECTS, Dialect, Key
from fluxsmith.adapters.dialects.base import by_prefix
from fluxsmith.adapters.reading.opening import open_adapter
from fluxsmith.errors import IncompatibleError
from fluxsmith.io.opening import open_checkpoint
from fluxsmith.layouts import Bound

Tensors = dict[str, Tensor]
KOHYA = "lora_unet_double_blocks_{}_img_attn_proj"


def pair(key: str, rank: int = 4, rows: int = 48, cols: int = 48, *, words: tuple[str, str] = ("lora_down", "lora_up")) -> Tensors:
    generator = torch.Generator().manual_seed(rank)
    return {
        f"{key}.{words[0]}.weight": torch.randn(rank, cols, generator=generator),
        f"{key}.{words[1]}.weight": torch.randn(rows, rank, generator=generator),
    }


def kohya() -> Tensors:
    """Two good modules."""
    return {**pair(KOHYA.format(0)), f"{KOHYA.format(0)}.alpha": torch.tensor(2.0), **pair(KOHYA.format(1), 3)}


def peft(key: str) -> Tensors:
    return pair(key, words=("lora_A", "lora_B"))


def load(
    tensors: Mapping[str, Tensor], folder: Path, base: Bound | None, *, components: Sequence[str] = (), ignore: Sequence[str] = ()
) -> Adapter:
    save_file(dict(tensors), folder / "style.safetensors")
    return open_adapter(open_checkpoint(folder / "style.safetensors"), base=base, components=components, ignore=ignore)


BAD: dict[str, tuple[Callable[[], Tensors], str, tuple[str, ...]]] = {
    "a stranger's key": (
        lambda: {**kohya(), "lora_unet_double_blocks_0_img_attn_qvk.lora_up.weight": torch.ones(4, 4)},
        "adapter.unmatched-keys", ("1 of 6 keys", "img_attn_qvk", "ignore: [GLOB]", "kohya for flux1"),
    ),
    "a key of no kind": (lambda: {**kohya(), "step": torch.ones(1)}, "adapter.unmatched-keys", ("first", "step")),
    "a block too many": (
        lambda: {**kohya(), **pair(KOHYA.format(7))},
        "adapter.unmatched-keys", ("2 of 7 keys", "no such block"),
    ),
    "a text encoder that the base lacks": (
        lambda: {**kohya(), **pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", rows=32, cols=8)},
        "adapter.unmatched-keys", ("2 clip_l", "the base has transformer only", "components: [transformer]"),
    ),
    "two ranks": (
        lambda: {**kohya(), f"{KOHYA.format(0)}.lora_up.weight": torch.ones(48, 5)},
        "adapter.rank-mismatch", ("up [48, 5]", "down [4, 48]", KOHYA.format(0)),
    ),
    "no up": (
        lambda: {key: tensor for key, tensor in kohya().items() if not key.endswith("1_img_attn_proj.lora_up.weight")},
        "adapter.half-module", ("lacks its factor 'up'", KOHYA.format(1)),
    ),
    "only an alpha": (lambda: {**kohya(), "lora_unet_img_in.alpha": torch.tensor(1.0)}, "adapter.half-module", ("lora_unet_img_in",)),
    "alpha that is no number": (
        lambda: {**kohya(), f"{KOHYA.format(0)}.alpha": torch.tensor(float("nan"))},
        "adapter.not-finite", (KOHYA.format(0), "alpha nan"),
    ),
    "an infinite alpha": (
        lambda: {**kohya(), f"{KOHYA.format(0)}.alpha": torch.tensor(9999999999.0).half()},
        "adapter.not-finite", (KOHYA.format(0), "alpha inf"),
    ),
    "several alphas": (
        lambda: {**kohya(), f"{KOHYA.format(0)}.alpha": torch.ones(3)}, "adapter.bad-number", ("[3]", "[] or [1]"),
    ),
    "another width": (
        lambda: {**pair(KOHYA.format(0), rows=64, cols=64)},
        "adapter.wrong-width", ("[48, 48]", "[64, 64]", "double_blocks.0.img_attn.proj.weight"),
    ),
    "a wider input than its dialect has": (
        lambda: {**kohya(), **pair("lora_unet_img_in", rows=48, cols=32)}, "adapter.wrong-width", ("[48, 16]", "[48, 32]"),
    ),
    "for SDXL": (
        lambda: pair("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", rows=640, cols=640),
        "adapter.wrong-family", ("sdxl", "flux1"),
    ),
    "for FLUX.2": (lambda: peft("diffusion_model.single_stream_modulation.lin"), "adapter.wrong-family", ("flux2", "flux1")),
    "for FLUX.2, though most names are FLUX.1's, too": (
        lambda: {
            **peft("diffusion_model.double_blocks.0.img_attn.proj"), **peft("diffusion_model.double_blocks.1.img_attn.proj"),
            **peft("diffusion_model.single_stream_modulation.lin"),
        },
        "adapter.wrong-family", ("flux2", "flux1"),
    ),
    "for one of several families": (
        lambda: pair("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", rows=640, cols=640),
        "adapter.wrong-family", ("sd15 or sdxl",),
    ),
    "two dialects": (
        lambda: {**kohya(), **peft("transformer.transformer_blocks.1.attn.to_q")},
        "adapter.mixed-dialects", ("kohya", "diffusers", "lora_unet_double", "transformer.transformer_blocks.1.attn.to_q"),
    ),
    "two dialects, half each": (
        lambda: {**pair(KOHYA.format(0)), **peft("transformer.transformer_blocks.1.attn.to_q")},
        "adapter.mixed-dialects", ("kohya", "diffusers"),
    ),
    "half converted": (
        lambda: {
            **peft("diffusion_model.double_blocks.0.img_attn.proj"), **peft("diffusion_model.double_blocks.1.img_attn.proj"),
            **peft("diffusion_model.transformer_blocks.1.attn.to_q"),
        },
        "adapter.half-converted", ("bfl", "diffusers", "diffusion_model.transformer_blocks.1.attn.to_q"),
    ),
    "a magnitude of other columns": (
        lambda: {**pair(KOHYA.format(0)), f"{KOHYA.format(0)}.dora_scale": torch.ones(1, 240)},
        "adapter.rank-mismatch", ("dora_scale [1, 240]", KOHYA.format(0)),
    ),
    "a magnitude of other rows": (
        lambda: {**pair(KOHYA.format(0)), f"{KOHYA.format(0)}.dora_scale": torch.ones(16, 1)},
        "adapter.rank-mismatch", ("dora_scale [16, 1]", KOHYA.format(0)),
    ),
    "one factor twice": (
        lambda: {**kohya(), f"{KOHYA.format(0)}.lora_B.weight": torch.ones(48, 4)}, "adapter.duplicate-key", ("lora_B", "lora_up"),
    ),
    "factors of two algorithms": (
        lambda: {**kohya(), f"{KOHYA.format(0)}.hada_w1_a": torch.ones(48, 4)}, "adapter.unknown-module", ("hada_w1_a", "lora_up"),
    ),
    "no adapter": (lambda: {"a.weight": torch.ones(2, 2)}, "adapter.unknown-dialect", ("a.weight", "fluxsmith list dialects")),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_refused(kind: str, tmp_path: Path, base: Bound) -> None:
    make, code, words = BAD[kind]
    with pytest.raises(IncompatibleError) as caught:
        load(make(), tmp_path, base)
    text = str(caught.value)
    assert caught.value.code == code, text
    assert "style.safetensors" in text
    assert caught.value.fix
    for word in words:
        assert word in text, text


def test_the_good_ones_open(tmp_path: Path, base: Bound) -> None:
    """What the bad ones were made of."""
    assert len(load(kohya(), tmp_path, base).modules) == 2


def test_unmatched_keys_can_be_ignored_by_a_rule(tmp_path: Path, base: Bound) -> None:
    stranger = "lora_unet_double_blocks_0_img_attn_qvk.lora_up.weight"
    adapter = load({**kohya(), stranger: torch.ones(4, 4)}, tmp_path, base, ignore=["*_qvk.*"])
    assert adapter.dropped == {stranger: "ignore: *_qvk.*"}
    assert adapter.score == 1.0


def test_an_adapter_that_is_ignored_as_a_whole_changes_nothing(tmp_path: Path, base: Bound) -> None:
    tensors = {**kohya(), **pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", rows=32, cols=8)}
    with pytest.raises(IncompatibleError, match=r"adapter\.changes-nothing"):
        load(tensors, tmp_path, base, components=["clip_l"], ignore=["lora_te1_*"])


def test_alpha_of_whole_lokr_matrices_may_be_infinite(tmp_path: Path, base: Bound) -> None:
    key = KOHYA.format(0)
    tensors = {
        f"{key}.lokr_w1": torch.randn(4, 4),
        f"{key}.lokr_w2": torch.randn(12, 12),
        f"{key}.alpha": torch.tensor(9999999999.0).half(),
    }
    (module,) = load(tensors, tmp_path, base).modules
    assert module.settings["scale"] == 1.0


HARMLESS = {
    "a text encoder of zeros": (
        {f"lora_te3_encoder_block_0_layer_0_SelfAttention_q.{role}": tensor for role, tensor in {
            "lora_down.weight": torch.ones(4, 8), "lora_up.weight": torch.zeros(8, 4), "alpha": torch.tensor(4.0)}.items()},
        "all zero",
    ),
    "a projection of zeros": (
        {"lora_te1_text_projection.lora_down.weight": torch.ones(4, 8), "lora_te1_text_projection.lora_up.weight": torch.zeros(8, 4)},
        "all zero",
    ),
    "positions": ({"lora_te_text_model_embeddings_position_ids": torch.arange(77)}, "position numbers"),
    "what a trainer kept": ({"lora_unet._aux.step": torch.ones(1)}, "kept for itself"),
    "bundled embeddings": ({"bundle_emb.cat.string_to_param.*": torch.ones(2, 8)}, "textual inversion"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HARMLESS)
def test_harmless_keys_are_left_out_by_a_named_rule(kind: str, tmp_path: Path, base: Bound) -> None:
    extra, reason = HARMLESS[kind]
    adapter = load({**kohya(), **extra}, tmp_path, base)
    assert set(adapter.dropped) == set(extra)
    assert all(reason in text for text in adapter.dropped.values())
    assert len(adapter.notes) == 1 and reason in adapter.notes[0] and str(len(extra)) in adapter.notes[0]


def test_a_text_encoder_that_is_not_zero_is_not_left_out(tmp_path: Path, base: Bound) -> None:
    up = torch.zeros(8, 4)
    up[7, 3] = 1e-8
    key = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    with pytest.raises(IncompatibleError, match=r"adapter\.unmatched-keys"):
        load({**kohya(), f"{key}.lora_down.weight": torch.ones(4, 8), f"{key}.lora_up.weight": up}, tmp_path, base)


def test_a_tie_between_readings_that_mean_different_things_is_refused(tmp_path: Path, base: Bound, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dialect that calls the image's stream the text's explains as many keys as kohya's."""

    def twisted(dialect: Dialect, key: str) -> Key | None:
        parsed = by_prefix(dialect, key)
        return parsed and replace(parsed, name=parsed.name.replace("img_attn", "txt_attn"))

    monkeypatch.setitem(DIALECTS, "twisted", replace(DIALECTS["kohya"], name="twisted", parse=twisted))
    with pytest.raises(IncompatibleError, match=r"adapter\.ambiguous-dialect") as caught:
        load(kohya(), tmp_path, base)
    assert "kohya" in str(caught.value) and "twisted" in str(caught.value)
    monkeypatch.setitem(DIALECTS, "twisted", replace(DIALECTS["kohya"], name="same"))
    assert load(kohya(), tmp_path, base).dialect == "kohya"


def test_a_rank_that_no_matrix_has_is_noted(tmp_path: Path, base: Bound) -> None:
    adapter = load({**kohya(), **pair("lora_unet_img_in", 17, cols=16)}, tmp_path, base)
    (note,) = adapter.notes
    assert "rank" in note and note.endswith(": lora_unet_img_in")
    assert load({**kohya(), **pair("lora_unet_img_in", 16, cols=16)}, tmp_path, base).notes == ()
