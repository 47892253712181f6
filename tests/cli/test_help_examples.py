"""The examples that the helps of the commands for adapters and quantised files give are run as they stand."""

import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path

import click
import pytest
import torch
from safetensors.torch import save_file

from bad_input.adapters import PROJ, dora, kohya, pair, peft
from support.cli_runs import run_cli
from support.tiny_all_in_one import save_all_in_one
from support.tiny_flux import TinyCheckpoints, tensors_of

COMMANDS = ("apply", "extract", "adapter_inspect", "adapter_convert", "adapter_resize", "adapter_merge", "split", "bundle", "convert")


def examples() -> list[str]:
    found: list[str] = []
    for name in COMMANDS:
        command: click.Command = import_module(f"fluxsmith.cli.{name}").command
        text = (command.help or "").replace("\\\n", " ")
        found += [line.strip() for line in text.splitlines() if line.strip().startswith("fluxsmith ")]
    return found


@pytest.fixture(scope="module")
def place(tiny: TinyCheckpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the examples name."""
    root = tmp_path_factory.mktemp("examples")
    for name in ("flux1-dev", "dev"):
        shutil.copy(tiny.a, root / f"{name}.safetensors")
    shutil.copy(tiny.b, root / "krea.safetensors")
    shutil.copytree(tiny.sharded, root / "transformer")
    shutil.copytree(tiny.sharded, root / "dev" / "transformer")
    shutil.copytree(tiny.root / "b-diffusers", root / "tuned" / "transformer")
    torch.save(tensors_of(tiny.a), root / "old.ckpt")
    for seed, name in enumerate(("blurry", "subject", "a", "b", "lora"), start=2):
        save_file(pair(PROJ, seed), root / f"{name}.safetensors")
    save_file(kohya(), root / "style.safetensors")
    save_file(dora(), root / "dora.safetensors")
    save_file({f"{PROJ}.lokr_w1": torch.rand(4, 4), f"{PROJ}.lokr_w2": torch.rand(12, 12)}, root / "lokr.safetensors")
    (root / "peft-folder").mkdir()
    save_file(peft("base_model.model.transformer_blocks.0.attn.to_q"), root / "peft-folder" / "adapter_model.safetensors")
    (root / "peft-folder" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 2}')
    parts = save_all_in_one(root / "parts", tiny.a)
    for source, name in ((parts.whole, "all"), (parts.whole, "flux1-dev-fp8"), (parts.clip_l, "clip_l"), (parts.t5, "t5xxl")):
        shutil.copy(source, root / f"{name}.safetensors")
    for name in ("ae", "better-ae"):
        shutil.copy(parts.vae, root / f"{name}.safetensors")
    return root


@pytest.mark.parametrize("example", examples())
def test_an_example_runs(example: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "./FLUX.1-dev" in example:
        pytest.skip("a pipeline's folder has tests of its own")
    monkeypatch.chdir(place)
    models = {"krea": "krea", "dev": "dev", "a": "krea", "b": "flux1-dev"}
    words = shlex.split(re.sub(r"(\w+)=\.\.\.", lambda found: f"{found[1]}={models[found[1]]}.safetensors", example))[1:]
    if "-o" in words:
        words[words.index("-o") + 1] = str(tmp_path / words[words.index("-o") + 1])
    run = run_cli(*words)
    assert run.code == 0, run.err
    assert run.out


def test_every_command_has_examples() -> None:
    for name in COMMANDS:
        assert any(example.startswith(f"fluxsmith {name.replace('_', ' ')} ") for example in examples()), name
