"""Quantised checkpoints that cannot be read, and quantised outputs that cannot be written."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING

from bad_input.adapters import good, over
from bad_input.cases import Arguments, Case, Yard
from quantised.producers import Stored, comfy, comfy_legacy, gguf_file, nf4, sd_scripts
from support.tiny_flux import TinyCheckpoints, tensors_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["QUANTISED"]

Tensors = dict[str, "Tensor"]
QKV = "double_blocks.0.img_attn.qkv"
FILE = "{broken}"


@cache
def _weights(tiny: TinyCheckpoints) -> Mapping[str, "Tensor"]:
    return tensors_of(tiny.a)


def _reading(produce: Callable[[Mapping[str, "Tensor"]], Stored], *lost: str, **added: "Tensor") -> Callable[[Yard], Arguments]:
    """A merge with a file of a producer that has lost some keys, or has others (`__` is a dot in their names)."""

    def arrange(yard: Yard) -> Arguments:
        stored = produce(_weights(yard.tiny))
        kept = {key: tensor for key, tensor in stored.tensors.items() if key not in lost}
        more = {key.replace("__", "."): tensor for key, tensor in added.items()}
        return yard.merge(Stored({**kept, **more}, {}, stored.metadata).save(yard.broken))

    return arrange


def _applied(yard: Yard) -> Arguments:
    """An adapter for a base that has lost a scale."""
    stored = comfy(_weights(yard.tiny))
    del stored.tensors[f"{QKV}.weight_scale"]
    return over(yard, good(yard), base=stored.save(yard.broken))


def _numbers(*shape: int) -> "Tensor":
    import torch

    return torch.ones(shape)


def _bytes(*shape: int) -> "Tensor":
    import torch

    return torch.ones(shape, dtype=torch.uint8)


def _mark(text: str) -> "Tensor":
    import torch

    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _gguf(share: float) -> Callable[[Yard], Arguments]:
    """A GGUF file that is cut short."""

    def arrange(yard: Yard) -> Arguments:
        file = yard.inputs / "broken.gguf"
        gguf_file(file, {key: tensor for key, tensor in _weights(yard.tiny).items() if tensor.ndim > 1}, "BF16")
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])
        return yard.merge(file)

    return arrange


def _writing(*options: object, output: str = "new.safetensors") -> Callable[[Yard], Arguments]:
    return lambda yard: ["convert", yard.tiny.a, "-o", yard.root / output, *options]


def _recipe(output: str) -> Callable[[Yard], Arguments]:
    head = "fluxsmith: 1\nmodels: {a: '{a}', b: '{b}'}\nmerge: {method: linear, inputs: [a, b]}\n"
    return lambda yard: yard.recipe(f"{head}output: {output}\n")


HALF, SCALE, SCHEME = "quantised.missing-half", "quantised.bad-scale", "model.quantised"
TYPE, LAYOUT = "usage.arguments", "usage.other-layout"

QUANTISED = [
    # Halves
    Case(
        "legacy fp8 without a scale", _reading(comfy_legacy, f"{QKV}.scale_weight"),
        4, HALF, [FILE, f"{QKV}.weight", f"{QKV}.scale_weight"],
    ),
    Case("new fp8 without a scale", _reading(comfy, f"{QKV}.weight_scale"), 4, HALF, [FILE, f"{QKV}.weight", f"{QKV}.weight_scale"]),
    Case("sd-scripts' fp8 without a scale", _reading(sd_scripts, f"{QKV}.scale_weight"), 4, HALF, [FILE, f"{QKV}.scale_weight"]),
    Case("a scale without its weight", _reading(comfy, f"{QKV}.weight"), 4, HALF, [FILE, f"{QKV}.weight_scale"]),
    Case("NF4 without absmax", _reading(nf4, f"{QKV}.weight.absmax"), 4, HALF, [FILE, f"{QKV}.weight.absmax"]),
    Case("NF4 without its state", _reading(nf4, f"{QKV}.weight.quant_state.bitsandbytes__nf4"), 4, HALF, [FILE, f"{QKV}.weight"]),
    Case("a base without a scale", _applied, 4, HALF, [FILE, f"{QKV}.weight_scale"]),
    # Scales that do not fit
    Case(
        "scales of other rows", lambda yard: _reading(sd_scripts, **{f"{QKV}.scale_weight": _numbers(7, 1)})(yard),
        4, SCALE, [FILE, f"{QKV}.scale_weight", "[144, 1]", "[7, 1]"],
    ),
    Case(
        "scales of other blocks", lambda yard: _reading(nf4, **{f"{QKV}.weight.absmax": _numbers(3)})(yard),
        4, SCALE, [FILE, f"{QKV}.weight.absmax", "3"],
    ),
    # Schemes that are not read
    Case(
        "ComfyUI's nvfp4", lambda yard: _reading(comfy, **{f"{QKV}.comfy_quant": _mark('{"format": "nvfp4"}')})(yard),
        4, SCHEME, [FILE, "nvfp4"],
    ),
    Case(
        "quanto", lambda yard: _reading(comfy, **{"x.weight._data": _bytes(8), "x.weight._scale": _numbers(1)})(yard),
        4, SCHEME, [FILE, "quanto", "x.weight._"],
    ),
    Case(
        "nunchaku", lambda yard: _reading(comfy, **{"x.qweight": _bytes(8), "x.wscales": _numbers(1)})(yard),
        4, SCHEME, [FILE, "nunchaku"],
    ),
    Case("GPTQ", lambda yard: _reading(comfy, **{"x.qweight": _bytes(8), "x.qzeros": _bytes(8)})(yard), 4, SCHEME, [FILE, "GPTQ"]),
    Case("bitsandbytes int8", lambda yard: _reading(comfy, **{"x.SCB": _numbers(8)})(yard), 4, SCHEME, [FILE, "bitsandbytes int8"]),
    # GGUF files
    Case("a GGUF cut in its header", _gguf(0.01), 3, "file.truncated", ["{inputs}/broken.gguf"]),
    Case("a GGUF cut in its tensors", _gguf(0.9), 3, "file.truncated", ["{inputs}/broken.gguf"]),
    # Outputs
    Case("misspelt type", _writing("--dtype", "fp8_scalde"), 2, TYPE, ["fp8_scalde", "did you mean `fp8_scaled`?"]),
    Case("a type with another mark", _writing("--dtype", "fp8-scaled"), 2, TYPE, ["fp8-scaled", "did you mean `fp8_scaled`?"]),
    Case("a type that is only read", _writing("--dtype", "q4_k"), 2, TYPE, ["q4_k", "q8_0"]),
    Case("misspelt type in a recipe", _recipe("{dtype: fp8_scald}"), 4, "recipe.bad-value", ["recipe.yaml:4:", "fp8_scaled"]),
    Case("misspelt type of apply", lambda yard: [*over(yard, good(yard)), "--dtype", "q80"], 2, TYPE, ["q80", "did you mean `q8_0`?"]),
    Case(
        "diffusers' names in a GGUF", _writing("--layout", "diffusers", "--dtype", "q8_0", output="x.gguf"),
        2, LAYOUT, ["diffusers", "--layout bfl"],
    ),
    Case("ComfyUI's prefix in a GGUF", _writing("--layout", "comfy", output="x.gguf"), 2, LAYOUT, ["comfy", "--layout bfl"]),
    Case("fp8 in a GGUF", _writing("--dtype", "fp8_scaled", output="x.gguf"), 2, "usage.not-in-gguf", ["x.gguf", "fp8_scaled", "q8_0"]),
    Case("shards of a GGUF", _writing("--shard-size", "10KB", output="x.gguf"), 2, "usage.shards-in-a-file", ["x.gguf"]),
    Case("Q8_0 in safetensors", _writing("--dtype", "Q8_0"), 2, "usage.only-in-gguf", ["new.safetensors", "new.gguf"]),
    Case("Q8_0 in a folder", _writing("--dtype", "q8_0", output="new"), 2, "usage.only-in-gguf", ["new.gguf"]),
    Case("torchao in one file", _writing("--dtype", "int8_torchao"), 2, "usage.needs-a-folder", ["new.safetensors", "config.json"]),
    Case("unquantised in a plain output", _writing("--unquantised", "double.0"), 2, "usage.unquantised", ["`double.0`", "--dtype"]),
    Case(
        "unquantised blocks that are not there", _writing("--dtype", "fp8_scaled", "--unquantised", "double.9"),
        4, "recipe.selector-without-match", ["`double.9`"],
    ),
    Case("nothing is quantised", _writing("--dtype", "fp8_scaled", "--unquantised", "*"), 4, "output.nothing-to-quantise", ["fp8_scaled"]),
]  # fmt: skip
