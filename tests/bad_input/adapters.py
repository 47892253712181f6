"""Adapters that cannot be meant (formats.md 4.2 (11)), through `apply`: what their files hold, and where they do not belong."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bad_input.cases import Arguments, Case, Yard

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ADAPTERS", "FLUX2", "PROJ", "SDXL", "STRANGER", "dora", "good", "kohya", "over", "pair", "peft", "peft_folder", "put", "zeros"]

Tensors = dict[str, "Tensor"]
PROJ = "lora_unet_double_blocks_0_img_attn_proj"
OTHER = "lora_unet_double_blocks_1_img_attn_proj"
SDXL = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"
FLUX2 = "diffusion_model.single_stream_modulation.lin"
STRANGER = "lora_unet_double_blocks_0_img_attn_qvk"
CLIP = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
TO_Q = "transformer_blocks.0.attn.to_q"


def pair(key: str, rank: int = 4, rows: int = 48, cols: int = 48, *, words: tuple[str, str] = ("lora_down", "lora_up")) -> Tensors:
    """A LoRA of a matrix [rows, cols], in random numbers."""
    import torch

    generator = torch.Generator().manual_seed(rank + rows)
    return {
        f"{key}.{words[0]}.weight": torch.randn(rank, cols, generator=generator),
        f"{key}.{words[1]}.weight": torch.randn(rows, rank, generator=generator),
    }


def peft(key: str, rank: int = 4, rows: int = 48, cols: int = 48) -> Tensors:
    """The same in PEFT's words."""
    return pair(key, rank, rows, cols, words=("lora_A", "lora_B"))


def kohya() -> Tensors:
    """Two good modules, one with an alpha that is not its rank."""
    import torch

    return {**pair(PROJ), f"{PROJ}.alpha": torch.tensor(2.0), **pair(OTHER, 3)}


def zeros(half: str = "lora_up") -> Tensors:
    """The good adapter before it is trained."""
    return {key: tensor * (half not in key) for key, tensor in kohya().items()}


def dora(shape: tuple[int, ...] = (48, 1)) -> Tensors:
    """A DoRA with one magnitude per row, or of another shape."""
    import torch

    return {**pair(PROJ), f"{PROJ}.dora_scale": torch.full(shape, 0.5)}


def put(yard: Yard, tensors: Mapping[str, "Tensor"], name: str = "broken.safetensors") -> Path:
    """Write an adapter into the yard."""
    from safetensors.torch import save_file

    save_file(dict(tensors), yard.inputs / name)
    return yard.inputs / name


def good(yard: Yard, name: str = "style.safetensors") -> Path:
    """A sound adapter in the yard."""
    return put(yard, kohya(), name)


def peft_folder(yard: Yard, config: object = None) -> Path:
    """A folder as PEFT saves it, without its config where that is None."""
    folder = yard.inputs / "peft"
    folder.mkdir()
    put(yard, peft(f"base_model.model.{TO_Q}"), "peft/adapter_model.safetensors")
    if config is not None:
        (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


def over(yard: Yard, *adapters: object, base: object = None, output: object = None) -> list[object]:
    """Arguments of `apply` over the older output."""
    return ["apply", *adapters, "-b", base or yard.tiny.a, "-o", output or yard.target, "--force"]


def _applied(make: Callable[[], Tensors], *options: object) -> Callable[[Yard], Arguments]:
    return lambda yard: [*over(yard, put(yard, make())), *options]


def _with(key: str, value: object) -> Callable[[], Tensors]:
    """The good adapter with one key more, or with another value of it."""

    def make() -> Tensors:
        import torch

        return {**kohya(), key: value if isinstance(value, torch.Tensor) else torch.tensor(value)}

    return make


def _with_nan() -> Tensors:
    tensors = kohya()
    tensors[f"{PROJ}.lora_up.weight"][3, 2] = float("nan")
    return tensors


def _split_magnitude() -> Tensors:
    """One magnitude per column of q, k and v apart, in a file that has them fused."""
    import torch

    key = "lora_unet_single_blocks_0_linear2"
    return {**pair(key, cols=240), f"{key}.dora_scale": torch.ones(1, 48)}


def _peft(config: object) -> Callable[[Yard], Arguments]:
    return lambda yard: over(yard, peft_folder(yard, config))


def _bytes(content: bytes) -> Callable[[Yard], Arguments]:
    def arrange(yard: Yard) -> Arguments:
        yard.broken.write_bytes(content)
        return over(yard, yard.broken)

    return arrange


def _cut(share: float) -> Callable[[Yard], Arguments]:
    def arrange(yard: Yard) -> Arguments:
        content = good(yard).read_bytes()
        yard.broken.write_bytes(content[: int(len(content) * share)])
        return over(yard, yard.broken)

    return arrange


def _pickle(yard: Yard) -> Arguments:
    import torch

    torch.save(kohya(), yard.inputs / "style.pt")
    return over(yard, yard.inputs / "style.pt")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 2}
HALF_CONVERTED = {
    **peft("diffusion_model.double_blocks.0.img_attn.proj"), **peft("diffusion_model.double_blocks.1.img_attn.proj"),
    **peft("diffusion_model.transformer_blocks.1.attn.to_q"),
}  # fmt: skip
NOTHING, FILE = "adapter.changes-nothing", "{broken}"

ADAPTERS = [
    # What its tensors are
    Case(
        "keys that fit nothing", _applied(lambda: {**kohya(), **pair(STRANGER)}),
        4, "adapter.unmatched-keys", [FILE, "2 of 7 keys", STRANGER, "--ignore GLOB"],
    ),
    Case(
        "a text encoder that the base lacks", _applied(lambda: {**kohya(), **pair(CLIP, 4, 32, 8)}),
        4, "adapter.unmatched-keys", [FILE, "2 clip_l", "--components transformer"],
    ),
    Case(
        "two ranks", _applied(_with(f"{PROJ}.lora_up.weight", pair("x", 5)["x.lora_up.weight"])),
        4, "adapter.rank-mismatch", [FILE, PROJ, "up [48, 5]", "down [4, 48]"],
    ),
    Case("alpha is no number", _applied(_with(f"{PROJ}.alpha", float("nan"))), 4, "adapter.not-finite", [FILE, PROJ, "alpha nan"]),
    Case("alpha is infinite", _applied(_with(f"{PROJ}.alpha", float("inf"))), 4, "adapter.not-finite", [FILE, PROJ, "alpha inf"]),
    Case("alpha is two numbers", _applied(_with(f"{PROJ}.alpha", [1.0, 2.0])), 4, "adapter.bad-number", [FILE, f"{PROJ}.alpha", "[2]"]),
    Case("another width", _applied(lambda: pair(PROJ, 4, 64, 64)), 4, "adapter.wrong-width", [FILE, PROJ, "[48, 48]", "[64, 64]"]),
    Case("for SDXL", _applied(lambda: pair(SDXL, 4, 640, 640)), 4, "adapter.wrong-family", [FILE, "sdxl", "flux1"]),
    Case("for FLUX.2", _applied(lambda: peft(FLUX2, 4, 144)), 4, "adapter.wrong-family", [FILE, "flux2", "flux1"]),
    Case(
        "two dialects", _applied(lambda: {**kohya(), **peft(f"transformer.{TO_Q}")}),
        4, "adapter.mixed-dialects", [FILE, "kohya", "diffusers", TO_Q, "--ignore GLOB"],
    ),
    Case(
        "half converted", _applied(lambda: HALF_CONVERTED),
        4, "adapter.half-converted", [FILE, "bfl", "diffusers", "transformer_blocks.1"],
    ),
    Case("magnitudes of columns of another layout", _applied(_split_magnitude), 4, "adapter.rank-mismatch", [FILE, "[1, 48]", "[48, 240]"]),
    Case("magnitudes of other rows", _applied(lambda: dora((16, 1))), 4, "adapter.rank-mismatch", [FILE, PROJ, "dora_scale [16, 1]"]),
    Case("NaN in a factor", _applied(_with_nan), 4, "values.not-finite", [FILE, PROJ, "up", "--allow-nonfinite"]),
    # Nothing is changed
    Case("untrained, up is zero", _applied(zeros), 4, NOTHING, [FILE, "zero in every tensor"]),
    Case("untrained, down is zero", _applied(lambda: zeros("lora_down")), 4, NOTHING, [FILE, "zero in every tensor"]),
    Case("weight zero", _applied(kohya, "-w", 0), 4, "recipe.no-contribution", ["`broken`"]),
    Case("all keys are ignored", _applied(kohya, "--ignore", "lora_*"), 4, NOTHING, [FILE, "5 keys by ignore: lora_*"]),
    Case("components that it lacks", _applied(kohya, "--components", "clip_l"), 4, NOTHING, [FILE, "5 keys by components: [clip_l]"]),
    # Options that cannot be meant
    Case(
        "a component that nobody has", _applied(kohya, "--components", "transfromer"),
        4, "adapter.unknown-component", [FILE, "did you mean `transformer`?"],
    ),
    Case("components that name none", _applied(kohya, "--components", ","), 2, "usage.components", ["--components"]),
    Case("nothing to ignore", _applied(kohya, "--ignore", "xyz*"), 4, "recipe.selector-without-match", [FILE, "xyz*"]),
    Case("a half is ignored", _applied(kohya, "--ignore", "*_up*"), 4, "adapter.half-module", [FILE, PROJ, "'up'"]),
    Case("weight NaN", _applied(kohya, "-w", "nan"), 2, "usage.weights", ["nan"]),
    Case("weight infinite", _applied(kohya, "-w", "inf"), 2, "usage.weights", ["inf"]),
    Case("weight a word", _applied(kohya, "-w", "much"), 2, "usage.arguments", ["much", "--weight"]),
    Case("two weights for one", _applied(kohya, "-w", 1, "-w", 2), 2, "usage.weights", ["2 weights", "1 adapters"]),
    Case("alpha zero", _applied(kohya, "--alpha", 0), 4, "recipe.bad-value", ["alpha", "`broken`"]),
    Case("alpha NaN", _applied(kohya, "--alpha", "nan"), 4, "recipe.bad-value", ["alpha", "`broken`"]),
    # PEFT's folders
    Case("no sidecar", _peft(None), 4, "adapter.missing-sidecar", ["{inputs}/peft", "adapter_config.json", "--alpha"]),
    Case("sidecar is no JSON", _peft("{"), 3, "file.bad-json", ["{inputs}/peft", "adapter_config.json"]),
    Case("sidecar is a list", _peft([1]), 3, "file.bad-json", ["{inputs}/peft", "not a JSON object"]),
    Case("sidecar without a rank", _peft({"peft_type": "LORA"}), 4, "adapter.bad-sidecar", ["{inputs}/peft", "`r`"]),
    Case("sidecar with rank 0", _peft({**LORA, "r": 0}), 4, "adapter.bad-sidecar", ["{inputs}/peft", "`r`", "above zero"]),
    Case(
        "sidecar whose alpha is a word", _peft({**LORA, "lora_alpha": "big"}),
        4, "adapter.bad-sidecar", ["{inputs}/peft", "`lora_alpha`"],
    ),
    Case("sidecar with another rank", _peft({**LORA, "r": 8}), 4, "adapter.sidecar-contradicts", ["{inputs}/peft", TO_Q, "rank 8"]),
    Case("a type of PEFT's that is not read", _peft({**LORA, "peft_type": "VERA"}), 4, "adapter.peft-type", ["{inputs}/peft", "VERA"]),
    Case("begun with PiSSA", _peft({**LORA, "init_lora_weights": "pissa"}), 4, "adapter.changed-base", ["{inputs}/peft", "pissa"]),
    Case(
        "a file without its folder", _applied(lambda: peft(f"base_model.model.{TO_Q}")),
        4, "adapter.missing-sidecar", [FILE, "adapter_config.json"],
    ),
    # What the file is
    Case("empty", _bytes(b""), 3, "file.empty", [FILE]),
    Case("a web page", _bytes(b"<!doctype html><html>" + b" " * 99), 3, "file.html", [FILE]),
    Case("a git-lfs pointer", _bytes(POINTER), 3, "file.lfs-pointer", [FILE]),
    Case("cut in its tensors", _cut(0.5), 3, "file.truncated", [FILE]),
    Case("cut in its header", _cut(0.01), 3, "file.truncated", [FILE]),
    Case("a pickle", _pickle, 3, "file.pickle", ["{inputs}/style.pt", "--allow-pickle"]),
    Case("not there", lambda yard: over(yard, yard.inputs / "gone.safetensors"), 3, "file.not-found", ["{inputs}/gone.safetensors"]),
    # Where it does not belong
    Case(
        "a model as adapter", lambda yard: over(yard, yard.copy(yard.tiny.b)),
        4, "adapter.is-model", [FILE, "flux1", "fluxsmith extract"],
    ),
    Case("a model's folder as adapter", lambda yard: over(yard, yard.copy(yard.tiny.sharded, "m")), 4, "adapter.is-model", ["{inputs}/m"]),
    Case(
        "an adapter as base", lambda yard: over(yard, good(yard), base=good(yard, "base.safetensors")),
        4, "model.wrong-kind", ["{inputs}/base.safetensors", "an adapter", "fluxsmith apply"],
    ),
    Case("base is not there", lambda yard: over(yard, good(yard), base=yard.root / "gone"), 3, "file.not-found", ["gone"]),
    # Where the result would go
    Case(
        "output is the adapter", lambda yard: over(yard, good(yard), output=yard.inputs / "style.safetensors"),
        4, "output.is-input", ["{inputs}/style.safetensors", "`style`"],
    ),
    Case(
        "output is the base", lambda yard: over(yard, good(yard), base=yard.copy(yard.tiny.a), output=yard.broken),
        4, "output.is-input", [FILE],
    ),
    Case(
        "output is in the adapter's folder",
        lambda yard: over(yard, peft_folder(yard, LORA), output=yard.inputs / "peft" / "x.safetensors"),
        4, "output.inside-input", ["{inputs}/peft"],
    ),
    Case("output exists", lambda yard: over(yard, good(yard))[:-1], 2, "output.exists", ["merged.safetensors", "--force"]),
]  # fmt: skip
