"""`extract`, `adapter ...`, `split` and `bundle` with what they cannot mean."""

from collections.abc import Callable
from pathlib import Path

from bad_input.adapters import FLUX2, PROJ, SDXL, STRANGER, Tensors, dora, good, kohya, pair, peft, put, zeros
from bad_input.cases import Arguments, Case, Yard
from support.foreign_models import save_foreign
from support.tiny_all_in_one import AllInOne, save_all_in_one
from support.tiny_flux import make_transformer, save_diffusers

__all__ = ["ADAPTER_COMMANDS"]


def _extract(*options: object, tuned: str = "b", base: str = "a") -> Callable[[Yard], Arguments]:
    return lambda yard: ["extract", getattr(yard.tiny, tuned), getattr(yard.tiny, base), "-o", yard.target, "--force", *options]


def _formula(formula: str, **models: Callable[[], Tensors]) -> Callable[[Yard], Arguments]:
    """`extract` of a formula over adapters."""

    def arrange(yard: Yard) -> Arguments:
        named = [w for name, make in models.items() for w in ("-m", f"{name}={put(yard, make(), f'{name}.safetensors')}")]
        return ["extract", formula, *named, "-o", yard.target, "--force"]

    return arrange


def _one(command: str, *options: object, make: Callable[[], Tensors] = kohya) -> Callable[[Yard], Arguments]:
    """`adapter COMMAND` of one adapter over the older output."""
    return lambda yard: ["adapter", command, put(yard, make()), "-o", yard.target, "--force", *options]


def _two(*options: object, second: Callable[[], Tensors] = kohya) -> Callable[[Yard], Arguments]:
    """`adapter merge` of two adapters over the older output."""
    return lambda yard: ["adapter", "merge", good(yard), put(yard, second()), "-o", yard.target, "--force", *options]


def _onto_itself(command: str, *options: object) -> Callable[[Yard], Arguments]:
    def arrange(yard: Yard) -> Arguments:
        style = good(yard)
        return ["adapter", command, style, "-o", style, "--force", *options]

    return arrange


def _older(command: str, *options: object) -> Callable[[Yard], Arguments]:
    return lambda yard: ["adapter", command, good(yard), "-o", yard.target, *options]


def _wide(yard: Yard) -> Path:
    return save_diffusers(make_transformer(5, num_attention_heads=4), yard.inputs / "wide")


def _lokr() -> Tensors:
    import torch

    return {f"{PROJ}.lokr_w1": torch.ones(4, 4), f"{PROJ}.lokr_w2": torch.ones(12, 12)}


def _oft() -> Tensors:
    import torch

    return {f"{PROJ}.oft_blocks": torch.ones(4, 12, 12), f"{PROJ}.alpha": torch.tensor(1.0)}


def _with_nan() -> Tensors:
    tensors = kohya()
    tensors[f"{PROJ}.lora_down.weight"][1, 2] = float("nan")
    return tensors


def _strange() -> Tensors:
    return {**kohya(), **pair(STRANGER)}


def _bundle(change: Callable[[Yard, AllInOne], Arguments]) -> Callable[[Yard], Arguments]:
    """`bundle` or `split` with the files of an all-in-one file at hand."""
    return lambda yard: change(yard, save_all_in_one(yard.inputs / "all", yard.tiny.a))


def _given(parts: AllInOne, **files: object) -> list[object]:
    """The components of a bundle as options, some of them others."""
    places = {**parts.parts, **files}
    return [word for name, place in places.items() if place for word in (f"--{name.replace('_', '-')}", place)]


def _to(yard: Yard) -> list[object]:
    return ["-o", yard.target, "--force"]


RULE, STYLE = "usage.rank-rule", "{inputs}/style.safetensors"
UNKNOWN, NOTHING, IS_INPUT = "usage.unknown-dialect", "adapter.changes-nothing", "output.is-input"

ADAPTER_COMMANDS = [
    # extract: ranks
    Case("extract: rank 0", _extract("--rank", 0), 2, RULE, ["--rank 0"]),
    Case("extract: rank below 0", _extract("--rank", -1), 2, RULE, ["--rank -1"]),
    Case("extract: half a rank", _extract("--rank", 1.5), 2, "usage.arguments", ["--rank", "1.5"]),
    Case("extract: no energy", _extract("--energy", 0), 2, RULE, ["--energy 0"]),
    Case("extract: more than all energy", _extract("--energy", 1.5), 2, RULE, ["--energy 1.5"]),
    Case("extract: energy NaN", _extract("--energy", "nan"), 2, RULE, ["--energy nan"]),
    Case("extract: threshold below 0", _extract("--threshold", -1), 2, RULE, ["--threshold -1"]),
    Case("extract: ratio 2", _extract("--ratio", 2), 2, RULE, ["--ratio 2"]),
    Case("extract: cumulative 0", _extract("--cumulative", 0), 2, RULE, ["--cumulative 0"]),
    Case("extract: multiples of 0", _extract("--rank-multiple", 0), 2, RULE, ["--rank-multiple 0"]),
    Case("extract: two rules", _extract("--rank", 4, "--energy", 0.9), 2, RULE, ["--rank and --energy"]),
    Case("extract: a rank of LoKr", _extract("--algo", "lokr", "--rank", 4), 2, RULE, ["--rank", "lokr"]),
    Case("extract: multiples of LoKr's rank", _extract("--algo", "lokr", "--rank-multiple", 4), 2, RULE, ["--rank-multiple", "lokr"]),
    Case("extract: factor 0", _extract("--algo", "lokr", "--factor", 0), 2, "usage.factor", ["--factor 0"]),
    Case("extract: a factor of LoRA", _extract("--factor", 4), 2, "usage.factor", ["--algo lokr"]),
    # extract: what and whither
    Case("extract: unknown algorithm", _extract("--algo", "lowkr"), 2, "usage.arguments", ["lowkr", "did you mean `lokr`?"]),
    Case("extract: unknown dialect", _extract("--dialect", "kohia"), 2, UNKNOWN, ["`kohia`", "did you mean `kohya`?"]),
    Case("extract: a dialect that is only read", _extract("--dialect", "kohya-oft"), 2, UNKNOWN, ["is read, but not written"]),
    Case(
        "extract: dialect and another layout", _extract("--dialect", "kohya", "--layout", "diffusers"),
        2, "usage.dialect-and-layout", ["kohya"],
    ),
    Case(
        "extract: LoKr for XLabs", _extract("--dialect", "xlabs", "--algo", "lokr"),
        4, "adapter.algorithm", ["xlabs", "lokr", "--dialect"],
    ),
    Case("extract: a block that is not there", _extract("--select", "double.9"), 4, "recipe.selector-without-match", ["`double.9`"]),
    Case("extract: components that name none", _extract("--components", ","), 2, "usage.components", ["--components"]),
    Case("extract: equal checkpoints", _extract(tuned="a"), 4, NOTHING, ["a.safetensors", "equal"]),
    Case("extract: guidance in one of them", _extract(tuned="schnell"), 4, "recipe.guidance", ["--guidance", "drop"]),
    Case(
        "extract: two families", lambda yard: ["extract", yard.tiny.a, save_foreign("flux2-bfl", yard.broken), *_to(yard)],
        4, "model.mixed-families", ["{broken}", "flux2", "flux1"],
    ),
    Case("extract: two sizes", lambda yard: ["extract", yard.tiny.a, _wide(yard), *_to(yard)], 4, "model.different-size", ["48", "96"]),
    Case("extract: no base", lambda yard: ["extract", yard.tiny.a, *_to(yard)], 2, "usage.no-base", ["a.safetensors", "BASE"]),
    Case("extract: models of no formula", _extract("-m", "a=b"), 2, "usage.model-of-no-formula", ["-m"]),
    Case("extract: an adapter alone", _formula("0.5*s", s=kohya), 4, "recipe.no-models", ["only adapters: s", "adapter merge"]),
    Case("extract: a DoRA without its base", _formula("0.5*s + 0.5*t", s=dora, t=kohya), 4, "recipe.no-models", ["s + t", "base + s"]),
    Case(
        "extract: from an adapter", lambda yard: ["extract", good(yard), yard.tiny.a, *_to(yard)],
        4, "model.wrong-kind", [STYLE, "an adapter"],
    ),
    Case(
        "extract: adapter as base", lambda yard: ["extract", yard.tiny.a, good(yard), *_to(yard)],
        4, "model.wrong-kind", [STYLE, "an adapter"],
    ),
    Case(
        "extract: output is the base", lambda yard: ["extract", yard.tiny.b, yard.copy(yard.tiny.a), "-o", yard.broken, "--force"],
        4, IS_INPUT, ["{broken}", "`base`"],
    ),
    Case("extract: output exists", lambda yard: _extract()(yard)[:-1], 2, "output.exists", ["merged.safetensors", "--force"]),
    Case(
        "extract: a GGUF", lambda yard: ["extract", yard.tiny.b, yard.tiny.a, "-o", yard.root / "x.gguf"],
        2, "usage.needs-a-file", ["x.gguf"],
    ),
    Case("extract: too little memory", _extract("--memory", "1MB"), 5, "plan.not-enough-memory", ["--memory"]),
    # adapter convert
    Case("convert: unknown dialect", _one("convert", "--to", "kohia"), 2, UNKNOWN, ["`kohia`", "did you mean `kohya`?", "--to"]),
    Case("convert: whereto is not said", _one("convert"), 2, "usage.arguments", ["--to"]),
    Case(
        "convert: LoKr for XLabs", _one("convert", "--to", "xlabs", make=_lokr),
        4, "adapter.algorithm", [PROJ, "LoKr", "--as lora --rank R"],
    ),
    Case(
        "convert: SDXL's for XLabs", _one("convert", "--to", "xlabs", make=lambda: pair(SDXL, 4, 640, 640)),
        4, "adapter.no-place", ["attn1.to_q"],
    ),
    Case(
        "convert: magnitudes of columns", _one("convert", "--to", "diffusers", make=lambda: dora((1, 48))),
        4, "adapter.algorithm", ["with a magnitude for every column"],
    ),
    Case("convert: OFT without its base", _one("convert", "--to", "kohya", make=_oft), 4, "adapter.needs-base", ["{broken}", "--base"]),
    Case(
        "convert: a folder's dialect to a file", _one("convert", "--to", "peft"),
        2, "usage.needs-a-folder", ["merged.safetensors", "peft"],
    ),
    Case("convert: a rank of nothing", _one("convert", "--to", "diffusers", "--rank", 4), 2, RULE, ["--as lora --rank 4"]),
    Case("convert: LoRA of no rank", _one("convert", "--to", "kohya", "--as", "lora", make=_lokr), 2, "usage.rank", ["--rank"]),
    Case("convert: NaN", _one("convert", "--to", "diffusers", make=_with_nan), 4, "values.not-finite", ["{broken}", PROJ]),
    Case(
        "convert: keys that fit nothing", _one("convert", "--to", "diffusers", make=_strange),
        4, "adapter.unmatched-keys", ["{broken}", STRANGER],
    ),
    Case("convert: nothing to ignore", _one("convert", "--to", "diffusers", "--ignore", "x*"), 2, "usage.ignore", ["{broken}", "x*"]),
    Case(
        "convert: a model", lambda yard: ["adapter", "convert", yard.tiny.a, "--to", "kohya", *_to(yard)],
        4, "adapter.is-model", ["a.safetensors"],
    ),
    Case("convert: onto itself", _onto_itself("convert", "--to", "diffusers"), 4, IS_INPUT, [STYLE]),
    Case("convert: output exists", _older("convert", "--to", "diffusers"), 2, "output.exists", ["--force"]),
    # adapter resize
    Case("resize: no rank", _one("resize"), 2, RULE, ["--rank"]),
    Case("resize: rank 0", _one("resize", "--rank", 0), 2, RULE, ["--rank 0"]),
    Case("resize: two rules", _one("resize", "--rank", 2, "--ratio", 0.5), 2, RULE, ["--rank and --ratio"]),
    Case("resize: DoRA without its base", _one("resize", "--rank", 2, make=dora), 4, "adapter.needs-base", ["DoRA", "--base"]),
    Case("resize: NaN", _one("resize", "--rank", 2, make=_with_nan), 4, "values.not-finite", ["{broken}", PROJ, "down"]),
    Case("resize: untrained", _one("resize", "--rank", 2, make=zeros), 4, NOTHING, ["{broken}", "not trained"]),
    Case("resize: onto itself", _onto_itself("resize", "--rank", 2), 4, IS_INPUT, [STYLE]),
    Case("resize: output exists", _older("resize", "--rank", 2), 2, "output.exists", ["--force"]),
    Case(
        "resize: a folder", lambda yard: ["adapter", "resize", good(yard), "-o", yard.root / "x", "--rank", 2],
        2, "usage.needs-a-file", ["x.safetensors"],
    ),
    # adapter merge
    Case(
        "merge: SDXL's with FLUX.1's", _two(second=lambda: pair(SDXL, 4, 640, 640)),
        4, "adapter.mixed-families", [STYLE, "sdxl", "flux1"],
    ),
    Case(
        "merge: FLUX.2's with FLUX.1's", _two(second=lambda: peft(FLUX2, 4, 144)),
        4, "adapter.mixed-families", ["{broken}", "flux2", "flux1"],
    ),
    Case("merge: other sizes", _two(second=lambda: pair(PROJ, 4, 64, 64)), 4, "adapter.wrong-width", ["[48, 48]", "[64, 64]"]),
    Case("merge: three weights", _two("-w", 1, "-w", 2, "-w", 3), 2, "usage.weights", ["3 weights", "2 adapters"]),
    Case("merge: weight NaN", _two("-w", "nan"), 2, "usage.weights", ["nan"]),
    Case("merge: weight zero", _two("-w", 0, "-w", 1), 4, "recipe.no-contribution", [STYLE, "weight is 0"]),
    Case("merge: weight zero in ties", _two("-w", 0, "-w", 1, "--method", "ties"), 4, "recipe.no-contribution", [STYLE]),
    Case("merge: one and its opposite", _two("-w", 1, "-w", -1), 4, NOTHING, ["add up to zero"]),
    Case("merge: an untrained one", _two(second=zeros), 4, NOTHING, ["{broken}", "not trained"]),
    Case("merge: an untrained one in ties", _two("--method", "ties", second=zeros), 4, NOTHING, ["{broken}"]),
    Case("merge: NaN", _two(second=_with_nan), 4, "values.not-finite", ["{broken}", PROJ]),
    Case("merge: unknown method", _two("--method", "tiez"), 4, "recipe.unknown-method", ["`tiez`", "did you mean `ties`?"]),
    Case("merge: unknown option", _two("--method", "ties", "--option", "densty=1"), 4, "recipe.unknown-option", ["`densty`", "`density`"]),
    Case("merge: option without value", _two("--method", "ties", "--option", "density"), 2, "usage.option", ["density=0.3"]),
    Case("merge: option of a sum", _two("--option", "density=1"), 2, "usage.option", ["concat"]),
    Case("merge: seed of a sum", _two("--seed", 4), 2, "usage.option", ["--seed", "concat"]),
    Case("merge: svd of no rank", _two("--method", "svd"), 2, RULE, ["--rank"]),
    Case("merge: DoRA without its base", _two(second=dora), 4, "adapter.needs-base", ["DoRA", "--base"]),
    Case(
        "merge: a model", lambda yard: ["adapter", "merge", good(yard), yard.copy(yard.tiny.b), *_to(yard)],
        4, "adapter.is-model", ["{broken}"],
    ),
    Case("merge: onto one of them", _onto_itself("merge"), 4, IS_INPUT, [STYLE]),
    Case("merge: output exists", _older("merge"), 2, "output.exists", ["--force"]),
    Case("merge: output of ties exists", _older("merge", "--method", "ties"), 2, "output.exists", ["--force"]),
    # adapter inspect
    Case("inspect: not there", lambda yard: ["adapter", "inspect", yard.inputs / "gone"], 3, "file.not-found", ["{inputs}/gone"]),
    Case("inspect: adapter as base", lambda yard: ["adapter", "inspect", good(yard), "--base", good(yard)], 4, "model.wrong-kind", [STYLE]),
    # all-in-one files
    Case(
        "split: a component that nobody has", _bundle(lambda yard, all_: ["split", all_.whole, "-o", yard.root / "x", "--only", "vea"]),
        4, "model.no-component", ["vea", "clip_l"],
    ),
    Case(
        "split: several to one file", _bundle(lambda yard, all_: ["split", all_.whole, *_to(yard)]),
        2, "usage.components-in-a-file", ["merged"],
    ),
    Case(
        "split: over other files", _bundle(lambda yard, all_: ["split", all_.whole, "-o", yard.target.parent, "--force"]),
        2, "output.not-replaceable", ["neighbour.txt"],
    ),
    Case("split: an adapter", lambda yard: ["split", good(yard), "-o", yard.root / "x"], 4, "rest.no-family", [STYLE]),
    Case("bundle: of nothing", lambda yard: ["bundle", *_to(yard)], 4, "bundle.missing-component", ["--transformer"]),
    Case(
        "bundle: a part is missing", _bundle(lambda yard, all_: ["bundle", *_given(all_, t5=None), *_to(yard)]),
        4, "bundle.missing-component", ["not given: t5", "t5=FILE"],
    ),
    Case(
        "bundle: a part in another's place", _bundle(lambda yard, all_: ["bundle", *_given(all_, clip_l=all_.t5), *_to(yard)]),
        4, "bundle.wrong-kind", ["t5.safetensors", "clip_l"],
    ),
    Case(
        "bundle: an adapter", _bundle(lambda yard, all_: ["bundle", *_given(all_, transformer=good(yard)), *_to(yard)]),
        4, "bundle.wrong-kind", [STYLE],
    ),
    Case(
        "bundle: onto a part", _bundle(lambda yard, all_: ["bundle", *_given(all_), "-o", all_.vae, "--force"]),
        4, IS_INPUT, ["vae.safetensors"],
    ),
    Case(
        "bundle: a part given twice", _bundle(lambda yard, all_: ["bundle", f"vae={all_.t5}", *_given(all_), *_to(yard)]),
        2, "usage.given-twice", ["vae"],
    ),
    Case(
        "bundle: a folder", _bundle(lambda yard, all_: ["bundle", *_given(all_), "-o", yard.root / "x"]),
        2, "usage.needs-a-file", ["x.safetensors"],
    ),
]  # fmt: skip
