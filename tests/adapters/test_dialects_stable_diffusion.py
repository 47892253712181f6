"""LyCORIS' kohya files of Stable Diffusion 1.5 and SDXL: names by LyCORIS itself, walking stock diffusers and transformers models."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters.containers import Container, delta_of, opened
from fluxsmith.io.numbers import read_bytes
from fluxsmith.io.opening import open_checkpoint
from fluxsmith.layouts import Bound, known_tables
from fluxsmith.layouts.detection import open_model
from support.tiny_pipelines import PIPELINES, save_pipeline

TAKEN = {
    "UNET_TARGET_REPLACE_MODULE": ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"],
    "UNET_TARGET_REPLACE_NAME": ["conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"],
    "TEXT_ENCODER_TARGET_REPLACE_MODULE": ["CLIPAttention", "CLIPMLP"],
    "TEXT_ENCODER_TARGET_REPLACE_NAME": list[str](),
}
TEXT = {"sd15": ("text_encoder",), "sdxl": ("text_encoder", "text_encoder_2")}


def locon(family: str, patch: pytest.MonkeyPatch) -> tuple[Container, dict[str, tuple[str, Tensor]]]:
    """A LoCon of all modules that LyCORIS takes; of each the name of its weight in the pipeline, and the delta."""
    from lycoris import kohya

    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    parts = {part: PIPELINES[family].tiny[part]() for part in ("unet", *TEXT[family])}
    # Stable Diffusion 1.5's text encoder is `lora_te`, SDXL's two are `lora_te1` and `lora_te2`.
    encoders = [parts[part] for part in TEXT[family]]
    text = encoders if len(encoders) > 1 else encoders[0]
    # Its own list takes the time embedding twice, by name and by class, and then refuses the double.
    for name, value in TAKEN.items():
        patch.setattr(kohya.LycorisNetworkKohya, name, value)
    sizes = {"lora_dim": 3, "alpha": 2.0, "conv_lora_dim": 2, "conv_alpha": 5.0}
    network = kohya.LycorisNetworkKohya(text, parts["unet"], network_module="lora", warn_on_unmatched=False, **sizes)
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1" if len(encoders) > 1 else "lora_te", "text_encoder_2": "lora_te2"}
    names = {
        f"{prefixes[part]}_{name}".replace(".", "_"): f"{part}/{name}.weight"
        for part, model in parts.items() for name, module in model.named_modules() if hasattr(module, "weight")
    }  # fmt: skip
    container, expected = Container(), {}
    generator = torch.Generator().manual_seed(9)
    for module in network.loras:
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        state = module.state_dict()
        container.tensors |= {f"{module.lora_name}.{key}": tensor for key, tensor in state.items()}
        up, down = state["lora_up.weight"], state["lora_down.weight"]
        scale = float(state["alpha"]) / len(down)
        change = scale * (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])
        expected[module.lora_name] = (names[module.lora_name], change)
    return container, expected


def values(base: Bound, tensor: str) -> Tensor:
    view = base.views[tensor]
    return torch.frombuffer(bytearray(read_bytes(view)), dtype=torch.bfloat16).reshape(view.shape)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_every_module_of_lycoris_finds_its_tensor(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = save_pipeline(PIPELINES[family], tmp_path / "base", 1)
    base = open_model(open_checkpoint(tmp_path / "base"), known_tables())
    container, expected = locon(family, monkeypatch)
    adapter = opened(container, tmp_path, base)
    assert (adapter.dialect, adapter.family, adapter.score) == ("kohya", family, 1.0)
    assert len(adapter.modules) == len(expected) > 150
    for module in adapter.modules:
        # The rows of the canonical tensor are those of the model's own weight, so a delta there is a delta of it.
        target = module.target
        name, change = expected[module.name]
        whole = values(base, target.tensor)
        rows = torch.cat([whole[span.start : span.start + span.rows] for span in target.spans])
        assert torch.equal(rows.reshape(stock[name].shape), stock[name])
        delta = delta_of(adapter, module, {target.tensor: whole})
        torch.testing.assert_close(delta.reshape(change.shape), change, rtol=1e-5, atol=1e-5)
