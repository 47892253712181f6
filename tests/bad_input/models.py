"""Sound files that are no models, or that do not fit each other (checks 6 to 10)."""

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from bad_input.cases import Arguments, Case, Yard
from support.broken_files import RawFile, raw_file, write_file
from support.foreign_models import save_foreign
from support.tiny_flux import make_transformer, save_bfl, save_diffusers

__all__ = ["MODELS"]

COMFY = "model.diffusion_model."
QKV = "double_blocks.0.img_attn.qkv.weight"


def _foreign(kind: str) -> Callable[[Yard], Arguments]:
    """A file of another kind, merged with a FLUX.1 checkpoint."""
    return lambda yard: yard.merge(save_foreign(kind, yard.broken))


def _other(**changes: object) -> Callable[[Yard], Arguments]:
    """A FLUX.1 checkpoint of another size."""

    def arrange(yard: Yard) -> Arguments:
        yard.broken.write_bytes(_transformer(**changes))
        return yard.merge(yard.broken)

    return arrange


@cache
def _transformer(**changes: object) -> bytes:
    with TemporaryDirectory() as folder:
        sharded = save_diffusers(make_transformer(5, **changes), Path(folder, "diffusers"))
        return save_bfl(sharded, Path(folder, "bfl.safetensors")).read_bytes()


def _raw(change: Callable[[RawFile], RawFile], *options: object) -> Callable[[Yard], Arguments]:
    """A well-formed file with other tensors."""

    def arrange(yard: Yard) -> Arguments:
        write_file(yard.broken, change(raw_file(yard.tiny.a)))
        return yard.merge(yard.broken, *options)

    return arrange


def _without(pattern: str) -> Callable[[Yard], Arguments]:
    return _raw(lambda raw: raw.without(*(key for key in raw.keys if re.search(pattern, key))))


def _plus(tensors: Mapping[str, tuple[str, list[int], bytes]]) -> Callable[[Yard], Arguments]:
    return _raw(lambda raw: raw.with_tensors({**{key: raw.part(key) for key in raw.keys}, **tensors}))


def _replaced(key: str, dtype: str, shape: list[int], width: int) -> Callable[[Yard], Arguments]:
    """One tensor of another shape or type; `width` is bytes per element."""
    count = 1
    for size in shape:
        count *= size
    return _plus({key: (dtype, shape, bytes(count * width))})


def _prefixed(pattern: str, prefix: str = COMFY) -> Callable[[Yard], Arguments]:
    return _raw(lambda raw: raw.renamed(lambda key: prefix + key if re.search(pattern, key) else key))


def _renamed(old: str, new: str) -> Callable[[Yard], Arguments]:
    return _raw(lambda raw: raw.renamed(lambda key: key.replace(old, new)))


def _narrow(key: str) -> Callable[[Yard], Arguments]:
    """The tensor lacks its last row."""

    def change(raw: RawFile) -> RawFile:
        dtype, shape, data = raw.part(key)
        row = len(data) // shape[0]
        return raw.with_tensors({**{k: raw.part(k) for k in raw.keys}, key: (dtype, [shape[0] - 1, *shape[1:]], data[:-row])})

    return _raw(change)


def _scaled_fp8(*names: str) -> Callable[[Yard], Arguments]:
    return _plus({name: ("F32", [1], bytes(4)) for name in names})


def _both_layouts(yard: Yard) -> Arguments:
    """One model under both namings in one file."""
    raw = raw_file(yard.tiny.a)
    tensors = {key: raw.part(key) for key in raw.keys}
    for shard in sorted(yard.tiny.sharded.glob("*.safetensors")):
        part = raw_file(shard)
        tensors |= {key: part.part(key) for key in part.keys}
    write_file(yard.broken, raw.with_tensors(tensors))
    return yard.merge(yard.broken)


def _guidance(formula: str, *options: object) -> Callable[[Yard], Arguments]:
    return lambda yard: yard.merge(yard.tiny.schnell, *options, formula=formula)


def _layout_of(kind: str, layout: str) -> Callable[[Yard], Arguments]:
    """A file that is merged key by key, written in a layout."""

    def arrange(yard: Yard) -> Arguments:
        save_foreign(kind, yard.broken)
        return yard.merge(yard.broken, "--layout", layout, b=yard.copy(yard.broken, "other.safetensors"))

    return arrange


def _two_vaes(change: Callable[[RawFile], RawFile]) -> Callable[[Yard], Arguments]:
    """Two checkpoints that are merged key by key, of which one is changed."""

    def arrange(yard: Yard) -> Arguments:
        save_foreign("vae", yard.broken)
        other = write_file(yard.inputs / "other.safetensors", change(raw_file(yard.broken)))
        return yard.merge(yard.broken, b=other)

    return arrange


def _with_part(raw: RawFile, key: str, part: tuple[str, list[int], bytes]) -> RawFile:
    return raw.with_tensors({**{k: raw.part(k) for k in raw.keys}, key: part})


VAE_KEY = "encoder.conv_in.bias"
FAMILIES = "model.mixed-families"
KIND = "model.wrong-kind"

#: Tensors of every kind of row and column; a wrong shape of any must be blamed on it and nothing else.
SHAPES = (
    "time_in.in_layer.weight", "time_in.in_layer.bias", "time_in.out_layer.weight", "vector_in.in_layer.weight", "txt_in.weight",
    "img_in.weight", "img_in.bias", "double_blocks.0.img_mod.lin.weight", "double_blocks.0.img_attn.norm.query_norm.scale", QKV,
    "double_blocks.0.img_attn.qkv.bias", "double_blocks.0.img_mlp.0.weight", "double_blocks.1.txt_mlp.2.weight",
    "single_blocks.0.linear1.weight", "single_blocks.2.linear2.weight", "single_blocks.0.norm.key_norm.scale",
    "final_layer.adaLN_modulation.1.weight",
)  # fmt: skip

MODELS = [
    Case("Chroma with FLUX.1", _foreign("chroma"), 4, FAMILIES, ["{broken}", "a is chroma", "b is flux1"]),
    Case("FLUX.2 with FLUX.1", _foreign("flux2"), 4, FAMILIES, ["{broken}", "a is flux2", "b is flux1"]),
    Case("FLUX.2 in BFL names with FLUX.1", _foreign("flux2-bfl"), 4, FAMILIES, ["{broken}", "a is flux2", "b is flux1"]),
    Case("SDXL with FLUX.1", _foreign("sdxl"), 4, FAMILIES, ["{broken}", "a is sdxl", "b is flux1"]),
    Case("VAE with FLUX.1", _foreign("vae"), 4, FAMILIES, ["{broken}", "a is structural", "b is flux1"]),
    Case("ControlNet", _foreign("controlnet"), 4, KIND, ["{broken}", "ControlNet", "controlnet_"]),
    Case("IP-Adapter", _foreign("ip-adapter"), 4, KIND, ["{broken}", "IP-Adapter", "ip_adapter"]),
    Case("Redux", _foreign("redux"), 4, KIND, ["{broken}", "Redux", "redux_"]),
    Case("LoRA by diffusers", _foreign("lora-diffusers"), 4, "recipe.wrong-space", ["the adapter a is a delta"]),
    Case("LoRA by kohya", _foreign("lora-kohya"), 4, "recipe.wrong-space", ["the adapter a is a delta"]),
    Case("LoKr", _foreign("lokr"), 4, "recipe.wrong-space", ["the adapter a is a delta"]),
    Case("mini with dev", _other(num_layers=1, num_single_layers=2), 4, "model.different-size", ["{broken}", "double blocks", "1 and 2"]),
    Case("fewer single blocks", _other(num_single_layers=2), 4, "model.different-size", ["{broken}", "single blocks", "2 and 3"]),
    Case("Fill with dev", _other(in_channels=96, out_channels=16), 4, "model.different-size", ["{broken}", "input channels", "96 and 16"]),
    Case("another width", _other(num_attention_heads=4), 4, "model.different-size", ["{broken}", "width", "96 and 48"]),
    Case("another text encoder", _other(joint_attention_dim=40), 4, "model.different-size", ["{broken}", "text embedding", "40 and 32"]),
    Case("block missing at the start", _without(r"^double_blocks\.0\."), 4, "model.missing-blocks", ["{broken}", "double_blocks.0"]),
    Case("block missing in the middle", _without(r"^single_blocks\.1\."), 4, "model.missing-blocks", ["{broken}", "single_blocks.1"]),
    Case("block missing at the end", _without(r"^single_blocks\.2\."), 4, "model.different-size", ["{broken}", "2 and 3"]),
    Case("all single blocks missing", _without(r"^single_blocks\."), 4, "model.different-size", ["{broken}", "single blocks", "0 and 3"]),
    Case(
        "a key missing", _without(r"^single_blocks\.1\.linear2\.bias$"),
        4, "model.missing-keys", ["{broken}", "1 of 92", "single_blocks.1.linear2.bias"],
    ),
    Case("all biases missing", _without(r"\.bias$"), 4, "model.missing-keys", ["{broken}", "39 of 92", "time_in.in_layer.bias", "more)"]),
    Case("final layer missing", _without(r"^final_layer\."), 4, "model.missing-keys", ["{broken}", "final_layer.linear.weight"]),
    Case(
        "half of the guidance layers missing", _without(r"^guidance_in\.in_layer"),
        4, "model.missing-keys", ["{broken}", "guidance_in.in_layer.weight"],
    ),
    Case(
        "a key too many", _plus({"double_blocks.0.img_attn.extra.weight": ("BF16", [4], bytes(8))}),
        4, "model.unknown-keys", ["{broken}", "double_blocks.0.img_attn.extra.weight"],
    ),
    Case(
        "other components", _plus({"vae.encoder.conv_in.weight": ("BF16", [4], bytes(8))}),
        4, "model.unknown-keys", ["{broken}", "vae.encoder.conv_in.weight"],
    ),
    Case(
        "a block of Chroma-Radiance", _plus({"nerf_blocks.0.param_generator.weight": ("BF16", [4], bytes(8))}),
        4, "model.unknown-keys", ["nerf_blocks.0"],
    ),
    Case(
        "a LoRA left in the file", _plus({"double_blocks.0.img_attn.qkv.lora_A.weight": ("BF16", [4, 48], bytes(384))}),
        4, "model.unknown-keys", ["{broken}", "lora_A"],
    ),
    Case("a name spelled otherwise", _renamed("img_attn.qkv", "img_attn.kqv"), 4, "model.missing-keys", ["{broken}", QKV]),
    Case(
        "norms under both names", _plus({"double_blocks.0.img_attn.norm.key_norm.weight": ("BF16", [24], bytes(48))}),
        4, "model.duplicate-key", ["{broken}", "key_norm"],
    ),
    *(
        Case(f"wrong shape of {key}", _narrow(key), 4, "model.wrong-shape", ["{broken}", f"key       {key}\n", "1 of 92", "found"])
        for key in SHAPES
    ),
    Case("matrix as a list", _replaced(QKV, "BF16", [144 * 48], 2), 4, "model.wrong-shape", ["{broken}", QKV, "[144, 48]", "[6912]"]),
    Case("matrix on its side", _replaced(QKV, "BF16", [48, 144], 2), 4, "model.wrong-shape", ["{broken}", QKV, "[144, 48]", "[48, 144]"]),
    Case(
        "matrix with a dimension too many", _replaced(QKV, "BF16", [144, 48, 1], 2),
        4, "model.wrong-shape", ["{broken}", QKV, "[144, 48, 1]"],
    ),
    Case("empty tensor", _replaced(QKV, "BF16", [0, 48], 2), 4, "model.wrong-shape", ["{broken}", QKV, "[0, 48]"]),
    Case("weights as int8", _replaced(QKV, "I8", [144, 48], 1), 4, "model.wrong-dtype", ["{broken}", QKV, "I8"]),
    Case("weights as fp8 scales", _replaced(QKV, "F8_E8M0", [144, 48], 1), 4, "model.wrong-dtype", ["{broken}", QKV, "F8_E8M0"]),
    Case("prefix on every second kind of key", _prefixed(r"attn|mod|norm"), 4, "model.mixed-names", ["{broken}", "model.diffusion_model."]),
    Case("prefix on one block", _prefixed(r"^double_blocks\.1\."), 4, "model.mixed-names", ["{broken}", "model.diffusion_model."]),
    Case("prefix on one key", _prefixed(r"^img_in\.weight$"), 4, "model.mixed-names", ["{broken}", "model.diffusion_model.img_in.weight"]),
    Case("both layouts in one file", _both_layouts, 4, "model.mixed-names", ["{broken}", "bfl", "diffusers"]),
    Case(
        "scaled fp8, older ComfyUI", _scaled_fp8("scaled_fp8", QKV.replace("weight", "scale_weight")),
        4, "quantised.plain-weight", ["{broken}", QKV, "scale_weight", "BF16"],
    ),
    Case(
        "scaled fp8, newer ComfyUI", _scaled_fp8(QKV.replace("weight", "weight_scale")),
        4, "quantised.plain-weight", ["{broken}", QKV, "weight_scale", "BF16"],
    ),
    Case("bitsandbytes 4-bit", _scaled_fp8(f"{QKV}.absmax"), 4, "quantised.missing-half", ["{broken}", QKV, f"{QKV}.quant_state"]),
    Case("bitsandbytes int8", _scaled_fp8(QKV.replace("weight", "SCB")), 4, "model.quantised", ["{broken}", "SCB", "int8"]),
    Case("quanto", _scaled_fp8(f"{QKV}._data"), 4, "model.quantised", ["{broken}", "quanto"]),
    Case("nunchaku", _scaled_fp8(QKV.replace("weight", "qweight")), 4, "model.quantised", ["{broken}", "nunchaku"]),
    Case(
        "guidance in one of two", _guidance("0.5*a + 0.5*b"),
        4, "recipe.guidance", ["b embeds", "a does not", "--guidance", "drop", "bake(3.5)"],
    ),
    Case("guidance in the second model of TIES", _guidance("ties(a, b)"), 4, "recipe.guidance", ["b embeds", "a does not"]),
    Case("guidance in the base of TIES", _guidance("ties(b, a)"), 4, "recipe.guidance", ["b embeds", "a does not"]),
    Case("guidance only of a model with weight 1", _guidance("a + (b - b) + 0.3*(b - a)"), 4, "recipe.guidance", ["b embeds"]),
    Case("layout for a file that has none", _layout_of("vae", "diffusers"), 4, "output.no-layout", ["diffusers"]),
    Case("key by key: a tensor missing", _two_vaes(lambda raw: raw.without(VAE_KEY)), 4, "model.missing-tensor", ["b has no", VAE_KEY]),
    Case(
        "key by key: a wrong shape", _two_vaes(lambda raw: _with_part(raw, VAE_KEY, ("F32", [4], bytes(16)))),
        4, "model.wrong-shape", [VAE_KEY, "{broken}", "[8]", "[4]"],
    ),
    Case(
        "key by key: an integer for a float", _two_vaes(lambda raw: _with_part(raw, VAE_KEY, ("I32", [8], bytes(32)))),
        4, "model.wrong-dtype", [VAE_KEY, "I32", "F32"],
    ),
    Case(
        "key by key: two values in a byte", _two_vaes(lambda raw: _with_part(raw, VAE_KEY, ("F4", [8], bytes(4)))),
        4, "model.wrong-dtype", [VAE_KEY, "F4"],
    ),
]  # fmt: skip
