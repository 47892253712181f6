"""Numbers that are not finite (check 12), in every way in which a tensor is made."""

import struct
from collections.abc import Callable, Sequence

from bad_input.cases import Arguments, Case, Yard
from support.broken_files import raw_file, write_file

__all__ = ["FORMULAS", "NAN", "VALUES", "put_value"]

KEY = "double_blocks.1.txt_mlp.0.weight"
LAST = 192 * 48 - 1
NAN, INF, MINUS_INF = b"\xc0\x7f", b"\x80\x7f", b"\x80\xff"

#: Two models agree against `a`, so that an infinite value of one sign or the other never comes out.
OUTVOTED = "dare_ties(b, a, c, 0.5*b + 0.5*c, density=1, sign='count')"

#: One formula for every way in which values pass through; `a` is the checkpoint with the bad value.
FORMULAS = {
    "weighted_sum": "weighted_sum(a, b, alpha=0.3)",
    "weighted_sum, second": "weighted_sum(b, a, alpha=0.3)",
    "linear": "linear(b, a, c, weights=[0.2, 0.3, 0.5])",
    "combination": "b + (c - a) * 0.3",
    "slerp": "slerp(b, a, alpha=0.4)",
    "task_arithmetic": "task_arithmetic(b, c, a)",
    "ties": "ties(b, a, c, density=0.3)",
    "ties, base": "ties(a, b, c, density=0.3)",
    "dare_linear": "dare_linear(b, a, c, density=0.2)",
    "dare_ties": "dare_ties(b, a, c, density=0.2)",
    "dare_ties, base": "dare_ties(a, b, c, density=0.2)",
    "dare_ties, outvoted": OUTVOTED,
    "nested": "ties(b, 0.5*a + 0.5*c)",
    "copied": "a",
}  # fmt: skip


def put_value(yard: Yard, value: bytes, *, at: int, key: str = KEY) -> None:
    """Break the yard's input: a copy of checkpoint `a` with one other element."""
    raw = raw_file(yard.tiny.a)
    place = raw.fields[key]["data_offsets"][0] + at * len(value)
    raw.data = raw.data[:place] + value + raw.data[place + len(value) :]
    write_file(yard.broken, raw)


def models_of(formula: str, yard: Yard) -> list[object]:
    """`-m` options for the models that a formula names."""
    places = {"a": yard.broken, "b": yard.tiny.b, "c": yard.tiny.c}
    names = [name for name in places if any(f"{left}{name}{right}" in f" {formula} " for left in " (*" for right in " ,)")]
    return [word for name in names for word in ("-m", f"{name}={places[name]}")]


def _value(value: bytes, formula: str, *, at: int = 7, options: Sequence[object] = ()) -> Callable[[Yard], Arguments]:
    def arrange(yard: Yard) -> Arguments:
        put_value(yard, value, at=at)
        return ["merge", formula, *models_of(formula, yard), "-o", yard.target, "--force", *options]

    return arrange


def _taken(yard: Yard) -> Arguments:
    """A rule copies the tensor that has the value; the formula itself does not touch it."""
    put_value(yard, NAN, at=7)
    models = f"{{a: {yard.broken}, b: '{{b}}', c: '{{c}}'}}"
    merge = f"{{method: linear, inputs: [b, c], rules: [{{match: {KEY}, take: a}}]}}"
    return yard.recipe(f"fluxsmith: 1\nmodels: {models}\nmerge: {merge}\n")


def _fp8(yard: Yard) -> Arguments:
    """fp8 (e4m3) has one pattern for NaN."""
    raw = raw_file(yard.tiny.fp8)
    place = raw.fields[KEY]["data_offsets"][0] + 7
    raw.data = raw.data[:place] + b"\x7f" + raw.data[place + 1 :]
    write_file(yard.broken, raw)
    return yard.merge(yard.broken)


def _in_shards(yard: Yard) -> Arguments:
    """Diffusers stores q, k and v apart: the element is counted in the fused tensor."""
    folder = yard.copy(yard.tiny.sharded, "broken")
    for shard in folder.glob("*.safetensors"):
        raw = raw_file(shard)
        if "transformer_blocks.0.attn.to_k.bias" in raw.keys:
            place = raw.fields["transformer_blocks.0.attn.to_k.bias"]["data_offsets"][0] + 2 * 5
            raw.data = raw.data[:place] + NAN + raw.data[place + 2 :]
            write_file(shard, raw)
    return yard.merge(folder)


def _too_large(yard: Yard) -> Arguments:
    """Finite inputs whose sum is not."""
    put_value(yard, struct.pack("<f", 3e38)[2:], at=7)
    return ["merge", "3*a - 2*b", *models_of("3*a - 2*b", yard), "-o", yard.target, "--force"]


def _words(*more: str) -> list[str]:
    return [KEY, "{broken}", "--allow-nonfinite", *more]


VALUES = [
    *(
        Case(f"{what} in {name}", _value(value, formula), 4, "values.not-finite", _words("a has 1 value ", f"element 7: {shown}"))
        for name, formula in FORMULAS.items()
        for what, value, shown in (("NaN", NAN, "nan"), ("Inf", INF, "inf"))
    ),
    Case("-Inf in dare_ties, outvoted", _value(MINUS_INF, OUTVOTED), 4, "values.not-finite", _words("element 7: -inf")),
    Case("-Inf in the last element", _value(MINUS_INF, "0.5*a + 0.5*b", at=LAST), 4, "values.not-finite", _words(f"element {LAST}: -inf")),
    Case("NaN in the first element", _value(NAN, "0.5*a + 0.5*b", at=0), 4, "values.not-finite", _words("element 0: nan")),
    Case("NaN with one thread", _value(NAN, "0.5*a + 0.5*b", options=["--threads", 1]), 4, "values.not-finite", _words()),
    Case("NaN converted to fp16", _value(NAN, "a", options=["--dtype", "fp16"]), 4, "values.not-finite", _words("element 7: nan")),
    Case("Inf converted to fp8", _value(INF, "a", options=["--dtype", "fp8_e4m3"]), 4, "values.not-finite", _words("element 7: inf")),
    Case("NaN copied in another layout", _value(NAN, "a", options=["--layout", "comfy"]), 4, "values.not-finite", _words("element 7: nan")),
    Case("NaN taken by a rule", _taken, 4, "values.not-finite", _words("element 7: nan")),
    Case("NaN in fp8", _fp8, 4, "values.not-finite", _words("element 7: nan")),
    Case(
        "NaN in shards", _in_shards,
        4, "values.not-finite",
        ["double_blocks.0.img_attn.qkv.bias", "{inputs}/broken/diffusion_pytorch_model-0", f"element {48 + 5}: nan"],
    ),
    Case("finite values whose sum is not", _too_large, 4, "values.not-finite", [KEY, "the result has 1 value", "element 7: inf"]),
]  # fmt: skip
