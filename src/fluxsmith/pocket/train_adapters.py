"""Train the pocket adapters again: `python -m fluxsmith.pocket.train_adapters [NAME|all] [-o FOLDER]`.

    framed-lora   LoRA of rank 8 by PEFT, as diffusers' `save_lora_adapter` writes it; obeys "framed"
    faint-lokr    LoKr by PEFT, a folder as its `save_pretrained` writes it; obeys "faint"

Both change every linear layer of the blocks of `base`, which stays as it is. They are trained as the fine-tunes of that
name are: flow matching with the style known, then distilled at guidance 2, so that they need no guidance. One CPU thread,
about five minutes for both.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from fluxsmith.errors import UsageError
from fluxsmith.hub import pocket_folder
from fluxsmith.pocket.card import write_adapter_card
from fluxsmith.pocket.checkpoints import load_checkpoint
from fluxsmith.pocket.streams import stream
from fluxsmith.pocket.train import DISTILLED_GUIDANCE, SEED, Schedule, Stage, data_loss, distillation_loss, fit

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

__all__ = ["ADAPTERS", "train_adapter"]

RANK, ALPHA = 8, 12.0
LOKR_ALPHA = 4.0
LEARN, DISTIL = Schedule(400, 4e-3), Schedule(120, 2e-3)

Add = Callable[["FluxTransformer2DModel"], None]
Save = Callable[["FluxTransformer2DModel", Path], None]


def linear_layers(transformer: FluxTransformer2DModel) -> list[str]:
    """The full names of every linear layer of the blocks; short ones would mean the last layer as well as a block's."""
    return [name for name, module in transformer.named_modules() if "transformer_blocks." in name and isinstance(module, nn.Linear)]


def add_lora(transformer: FluxTransformer2DModel) -> None:
    """A LoRA beside every linear layer, up zero."""
    from peft import LoraConfig

    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=linear_layers(transformer)))
    _start(transformer, "lora_B")


def save_lora(transformer: FluxTransformer2DModel, folder: Path) -> None:
    """One file with the configuration in its header."""
    transformer.save_lora_adapter(folder)


def add_lokr(transformer: FluxTransformer2DModel) -> None:
    """A LoKr beside every linear layer, its small factor zero."""
    from peft import LoKrConfig, inject_adapter_in_model

    config = LoKrConfig(r=RANK, alpha=LOKR_ALPHA, target_modules=linear_layers(transformer), base_model_name_or_path="pocket/base")
    inject_adapter_in_model(config, transformer)
    _start(transformer, "lokr_w1")


def save_lokr(transformer: FluxTransformer2DModel, folder: Path) -> None:
    """A folder as `PeftModel.save_pretrained` writes it."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = transformer.peft_config["default"]
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(folder)
    tensors = get_peft_model_state_dict(transformer)
    save_file(
        {f"base_model.model.{key}": tensor.contiguous() for key, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )


#: Name -> the style that it obeys, how it is added to the base, how it is saved.
ADAPTERS: dict[str, tuple[str, Add, Save]] = {
    "framed-lora": ("framed", add_lora, save_lora),
    "faint-lokr": ("faint", add_lokr, save_lokr),
}


def train_adapter(base: FluxTransformer2DModel, name: str) -> FluxTransformer2DModel:
    """The base with a trained adapter beside its layers."""
    style, add, _ = ADAPTERS[name]
    base.requires_grad_(False)
    add(base)
    learned = _trainable(fit(base, data_loss, Stage(name, (style,), LEARN)))
    teacher = copy.deepcopy(learned).requires_grad_(False)
    return fit(learned, distillation_loss(teacher, DISTILLED_GUIDANCE), Stage(f"{name} distilled", (style,), DISTIL))


def _factors(transformer: FluxTransformer2DModel) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in transformer.named_parameters() if "lora_" in name or "lokr_" in name]


def _trainable(transformer: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """The average that `fit` gives takes no gradients; its factors are to."""
    for _, parameter in _factors(transformer):
        parameter.requires_grad_(True)
    return transformer


@torch.no_grad()
def _start(transformer: FluxTransformer2DModel, zero: str) -> None:
    """Factors from random streams of their own; those called `zero` are zero, so that the delta is."""
    for name, parameter in _factors(transformer):
        if zero in name:
            nn.init.zeros_(parameter)
        else:
            bound = 1 / math.sqrt(parameter.shape[-1])
            nn.init.uniform_(parameter, -bound, bound, generator=stream(SEED, f"init/{name}"))
        parameter.requires_grad_(True)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fluxsmith.pocket.train_adapters", description="Train the pocket adapters.")
    parser.add_argument("name", nargs="?", default="all", choices=[*ADAPTERS, "all"])
    parser.add_argument("-o", "--output", type=Path, default=pocket_folder(), help="default: the folder inside the package")
    chosen = parser.parse_args(arguments)
    try:
        import peft  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        raise UsageError("usage.missing-extra", "peft is not installed, which trains these", fix="pip install peft") from None
    torch.set_num_threads(1)  # sums in another order would give other weights
    torch.use_deterministic_algorithms(True)
    for name in ADAPTERS if chosen.name == "all" else [chosen.name]:
        folder = chosen.output / name
        folder.mkdir(parents=True, exist_ok=True)
        ADAPTERS[name][2](train_adapter(load_checkpoint("base"), name), folder)
        write_adapter_card(name, folder)
        print(f"wrote {folder}", flush=True)


if __name__ == "__main__":
    main()
