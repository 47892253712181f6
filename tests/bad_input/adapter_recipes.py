"""Adapters in formulas and recipes, where they cannot be meant: what they are taken for, and the fields of their entries."""

from collections.abc import Callable
from pathlib import Path

from bad_input.adapters import FLUX2, PROJ, STRANGER, Tensors, good, kohya, pair, peft, put, zeros
from bad_input.cases import Arguments, Case, Yard

__all__ = ["ADAPTER_RECIPES"]

TASK = "{method: task_arithmetic, base: a, inputs: [b, s]}"


def _formula(formula: str, make: Callable[[], Tensors] = kohya, *more: object) -> Callable[[Yard], Arguments]:
    """A formula over the models `a` and `b` (where it has them) and the adapter `s`."""

    def arrange(yard: Yard) -> Arguments:
        places: dict[str, Path] = {"a": yard.tiny.a, "b": yard.tiny.b, "s": put(yard, make())}
        named = [word for name, place in places.items() if name in formula.replace("slerp", "") for word in ("-m", f"{name}={place}")]
        return ["merge", formula, *named, "-o", yard.target, "--force", *more]

    return arrange


def _entry(fields: str, *, merge: str = TASK, make: Callable[[], Tensors] = kohya) -> Callable[[Yard], Arguments]:
    """A recipe whose line 5 is the adapter `s`, with these fields."""

    def arrange(yard: Yard) -> Arguments:
        (yard.inputs / "s").write_bytes(put(yard, make()).read_bytes())
        (yard.inputs / "s").rename(yard.inputs / "s.safetensors")
        fields_here = fields.replace("FILE", f"{yard.inputs}/s.safetensors")
        return yard.recipe(f"fluxsmith: 1\nmodels:\n  a: {{a}}\n  b: {{b}}\n  s: {fields_here}\nmerge: {merge}\n")

    return arrange


def _output_is_adapter(yard: Yard) -> Arguments:
    style = good(yard)
    return ["merge", "a + s", "-m", f"a={yard.tiny.a}", "-m", f"s={style}", "-o", style, "--force"]


def _unused(yard: Yard) -> Arguments:
    return [
        "merge",
        "0.5*a + 0.5*b",
        "-m",
        f"a={yard.tiny.a}",
        "-m",
        f"b={yard.tiny.b}",
        "-m",
        f"s={good(yard)}",
        "-o",
        yard.target,
        "--force",
    ]


def _named_twice(yard: Yard) -> Arguments:
    return [
        "merge",
        "a + s",
        "-m",
        f"a={yard.tiny.a}",
        "-m",
        f"s={good(yard)}",
        "-m",
        f"s={good(yard, 't.safetensors')}",
        "-o",
        yard.target,
    ]


LINE = "recipe.yaml:5:"
STYLE = "{inputs}/s.safetensors"
SPACE, VALUE, NO_MATCH = "recipe.wrong-space", "recipe.bad-value", "recipe.selector-without-match"

ADAPTER_RECIPES = [
    # In formulas
    Case("averaged with a model", _formula("0.5*a + 0.5*s"), 4, SPACE, ["0.5*a + 0.5*s", "the adapter s is a delta"]),
    Case("alone", _formula("s"), 4, SPACE, ["add it to a base"]),
    Case(
        "between models in slerp", _formula("slerp(a, s, alpha=0.5)"),
        4, SPACE, ["slerp takes a weight where s is a delta", "`base + s`"],
    ),
    Case("added and taken away", _formula("a + s - s"), 4, "recipe.no-contribution", ["`s`"]),
    Case("times zero", _formula("a + 0*s"), 4, "recipe.no-contribution", ["`s`"]),
    Case("untrained", _formula("a + s", zeros), 4, "adapter.changes-nothing", ["`s`", "{broken}"]),
    Case("of another family", _formula("a + s", lambda: peft(FLUX2, 4, 144)), 4, "adapter.wrong-family", ["{broken}", "flux2", "flux1"]),
    Case(
        "with keys that fit nothing", _formula("a + s", lambda: {**kohya(), **pair(STRANGER)}),
        4, "adapter.unmatched-keys", ["{broken}", STRANGER, "ignore: [GLOB]"],
    ),
    Case("not used", _unused, 4, "recipe.unused-model", ["`s`"]),
    Case("a name given twice", _named_twice, 2, "usage.bad-model", ["`-m s=...`"], fix=False),
    Case("output is the adapter", _output_is_adapter, 4, "output.is-input", ["{inputs}/style.safetensors", "`s`"]),
    # In recipes: its fields
    Case("unknown field", _entry("{adapter: FILE, wieght: 0.5}"), 4, "recipe.unknown-key", [LINE, "`wieght`", "did you mean `weight`?"]),
    Case("a field of checkpoints", _entry("{adapter: FILE, holds: delta}"), 4, "recipe.unknown-key", [LINE, "`holds`"]),
    Case("weight a word", _entry("{adapter: FILE, weight: strong}"), 4, VALUE, [LINE, "the weight of an adapter"]),
    Case("weight a list", _entry("{adapter: FILE, weight: [1, 2]}"), 4, VALUE, [LINE, "the weight of an adapter"]),
    Case("weight a truth", _entry("{adapter: FILE, weight: true}"), 4, VALUE, [LINE, "the weight of an adapter"]),
    Case("weight nothing", _entry("{adapter: FILE, weight: null}"), 4, VALUE, [LINE, "the weight of an adapter"]),
    Case("weight NaN", _entry("{adapter: FILE, weight: .nan}"), 4, VALUE, [LINE, "`s`", "nan"]),
    Case("weight zero", _entry("{adapter: FILE, weight: 0}"), 4, "recipe.no-contribution", [LINE, "`s`"]),
    Case(
        "a block that the model lacks", _entry("{adapter: FILE, weight: {default: 1, double.7: 2}}"),
        4, NO_MATCH, [LINE, "double.7", "double.0-1"],
    ),
    Case("a misspelt block", _entry("{adapter: FILE, weight: {default: 1, dobule.0: 2}}"), 4, NO_MATCH, [LINE, "dobule.0"]),
    Case(
        "a block that the adapter lacks", _entry("{adapter: FILE, weight: {default: 1, single.0: 2}}"),
        4, NO_MATCH, [LINE, "`single.0` matches no tensor that the adapter `s` changes"],
    ),
    Case("no default", _entry("{adapter: FILE, weight: {double.0: 2}}"), 4, "recipe.no-default", [LINE, "double_blocks.1", "default"]),
    Case("components a word", _entry("{adapter: FILE, components: transformer}"), 4, VALUE, [LINE, "components"]),
    Case("components a number", _entry("{adapter: FILE, components: [1]}"), 4, VALUE, [LINE, "components"]),
    Case(
        "components that nobody has", _entry("{adapter: FILE, components: [clip_i]}"),
        4, "adapter.unknown-component", [STYLE, "`clip_i`", "`clip_l`?"],
    ),
    Case(
        "components that it lacks", _entry("{adapter: FILE, components: [clip_l]}"),
        4, "adapter.changes-nothing", [STYLE, "components: [clip_l]"],
    ),
    Case("ignore a word", _entry("{adapter: FILE, ignore: 'x*'}"), 4, VALUE, [LINE, "ignore"]),
    Case("nothing to ignore", _entry("{adapter: FILE, ignore: ['x*']}"), 4, NO_MATCH, [LINE, "`x*`", STYLE]),
    Case("alpha a word", _entry("{adapter: FILE, alpha: big}"), 4, VALUE, [LINE, "alpha"]),
    Case("alpha below zero", _entry("{adapter: FILE, alpha: -1}"), 4, VALUE, [LINE, "alpha", "-1"]),
    Case("base that is not there", _entry("{adapter: FILE, base: q}"), 4, "recipe.unknown-name", [LINE, "`q`"]),
    Case("reference a number", _entry("{adapter: 7}"), 4, VALUE, [LINE, "adapter"]),
    Case("reference nothing", _entry("{adapter: }"), 4, VALUE, [LINE, "`adapter`"]),
    Case("no reference", _entry("{weight: 0.5}"), 4, VALUE, [LINE, "`adapter`"]),
    Case("two references", _entry("{adapter: FILE, adapter: FILE}"), 4, "recipe.duplicate-key", [LINE, '"adapter"']),
    Case("reference to nothing", _entry("{adapter: /nowhere/s.safetensors}"), 3, "file.not-found", ["/nowhere/s.safetensors"]),
    Case("reference to a model", _entry("{adapter: '{b}'}"), 4, "adapter.is-model", ["b.safetensors", "flux1"]),
    # In recipes: its place
    Case("as a plain model", _entry("FILE"), 4, "model.wrong-kind", [STYLE, "an adapter"]),
    Case(
        "as the base", _entry("{adapter: FILE}", merge="{method: ties, base: s, inputs: [a, b]}"),
        4, SPACE, ["recipe.yaml:6:", "s is a delta"],
    ),
    Case("in linear", _entry("{adapter: FILE}", merge="{method: linear, inputs: [a, b, s]}"), 4, SPACE, ["recipe.yaml:6:", "`base + s`"]),
    Case("in no merge", _entry("{adapter: FILE}", merge="{method: linear, inputs: [a, b]}"), 4, "recipe.unused-model", [LINE, "`s`"]),
    Case("untrained in ties", _entry("{adapter: FILE}", make=zeros), 4, "adapter.changes-nothing", [STYLE, "`s`"]),
    Case(
        "another width in ties", _entry("{adapter: FILE}", make=lambda: pair(PROJ, 4, 64, 64)),
        4, "adapter.wrong-width", [STYLE, "[64, 64]"],
    ),
]  # fmt: skip
