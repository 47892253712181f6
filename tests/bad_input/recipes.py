"""Recipes and formulas that cannot be meant, each with the place where it says so (CLI.md 2 and 4)."""

from collections.abc import Callable, Sequence

from bad_input.cases import Arguments, Case, Yard

__all__ = ["RECIPES"]

HEAD = """\
fluxsmith: 1
models:
  a: {a}
  b: {b}
"""


def _text(text: str, *options: object) -> Callable[[Yard], Arguments]:
    """A whole recipe file."""
    return lambda yard: yard.recipe(text, *options)


def _merge(lines: str, *options: object) -> Callable[[Yard], Arguments]:
    """A recipe whose models are in lines 1 to 4 and whose next lines are these."""
    return _text(HEAD + lines, *options)


def _bytes(content: bytes) -> Callable[[Yard], Arguments]:
    def arrange(yard: Yard) -> Arguments:
        arguments = yard.recipe("")
        (yard.inputs / "recipe.yaml").write_bytes(content)
        return arguments

    return arrange


def _with_file(name: str, text: str, recipe: str) -> Callable[[Yard], Arguments]:
    """A recipe with another file beside it."""

    def arrange(yard: Yard) -> Arguments:
        (yard.inputs / name).write_text(yard.filled(text))
        return yard.recipe(recipe)

    return arrange


def _recipe_folder(yard: Yard) -> Arguments:
    (yard.inputs / "folder.yaml").mkdir()
    return ["merge", yard.inputs / "folder.yaml", "-o", yard.target, "--force"]


def _weights_as_recipe(yard: Yard) -> Arguments:
    return ["merge", yard.tiny.a, "-o", yard.target, "--force"]


def _formula(formula: str, *options: object) -> Callable[[Yard], Arguments]:
    return lambda yard: yard.merge(yard.tiny.a, *options, formula=formula)


def _deep(depth: int) -> str:
    return "(" * depth + "a" + ")" * depth


def at(line: int, column: int, *words: str) -> Sequence[str]:
    """The place of an error in the recipe file, and more words of its message."""
    return [f"--> {{inputs}}/recipe.yaml:{line}:{column}\n", *words]


LINEAR = "merge:\n  method: linear\n  inputs: [a, b]\n"
KARCHER = "merge:\n  method: karcher\n  inputs: [a, b]\n"
WEIGHTED = "merge:\n  method: weighted_sum"
TIES = "merge:\n  method: ties\n  base: a\n  inputs: [b]\n"
BASE = "  missing: base\n"

RECIPES = [
    # What the file is
    Case("not there", lambda yard: ["merge", "nowhere.yaml", "-o", yard.target], 2, "usage.no-recipe", ["nowhere.yaml"]),
    Case("a folder", _recipe_folder, 2, "usage.no-recipe", ["folder.yaml"]),
    Case("not text", _bytes(b"\xff\xfe\x00\x01"), 4, "recipe.not-text", ["{inputs}/recipe.yaml"]),
    Case("text with control characters", _bytes(b"fluxsmith: 1\nmerge: a\x00b\n"), 4, "recipe.bad-yaml", ["{inputs}/recipe.yaml"]),
    Case("weights", _weights_as_recipe, 4, "recipe.not-text", ["a.safetensors"]),
    Case("empty", _text(""), 4, "recipe.bad-value", ["{inputs}/recipe.yaml"]),
    Case("only a comment", _text("# later\n"), 4, "recipe.bad-value", ["{inputs}/recipe.yaml"]),
    Case("a word", _text("hello\n"), 4, "recipe.bad-value", ["{inputs}/recipe.yaml"]),
    Case("a list", _text("- fluxsmith: 1\n"), 4, "recipe.bad-value", ["{inputs}/recipe.yaml"]),
    Case("two documents", _text("fluxsmith: 1\n---\nfluxsmith: 1\n"), 4, "recipe.bad-yaml", ["{inputs}/recipe.yaml:2:1"]),
    Case("a date that is none", _merge("seed: 2026-13-45\n"), 4, "recipe.bad-yaml", ["{inputs}/recipe.yaml", "month"]),
    Case("a list in a list, two thousand times", _text("- " * 2_000), 4, "recipe.bad-yaml", ["{inputs}/recipe.yaml"]),
    Case("unclosed bracket", _merge("merge:\n  inputs: [a, b\n"), 4, "recipe.bad-yaml", ["{inputs}/recipe.yaml:"]),
    Case("tab for indentation", _merge("merge:\n\tmethod: linear\n"), 4, "recipe.bad-yaml", at(6, 1)),
    Case("a Python object", _merge("merge: !!python/object/apply:os.system ['true']\n"), 4, "recipe.bad-value", at(5, 1, "`merge`")),
    Case(
        "a tag of its own", _merge("merge:\n  method: !mine linear\n  inputs: [a, b]\n"), 4, "recipe.bad-value", at(6,
        3, "`merge.method`"),
    ),
    Case(
        "a list that holds itself", _merge("merge:\n  method: linear\n  inputs: &x [a, *x]\n"),
        4, "recipe.bad-value", ["{inputs}/recipe.yaml:7:"],
    ),
    Case("unknown anchor", _merge("merge:\n  method: linear\n  inputs: [a, *x]\n"), 4, "recipe.bad-yaml", at(7, 15)),
    Case("another version", _text("fluxsmith: 2\nmerge: a\n"), 4, "recipe.bad-value", at(1, 1, "`fluxsmith`")),
    # Keys
    Case(
        "unknown key of an input", _merge("merge:\n  method: linear\n  inputs:\n    - {model: a, wieght: 0.6}\n    - b\n"),
        4, "recipe.unknown-key", at(8, 18, "`wieght`", "a merge input", "      ^^^^^^ did you mean `weight`?"),
    ),
    Case("unknown key of the recipe", _merge("sead: 3\n" + LINEAR), 4, "recipe.unknown-key", at(5, 1, "`sead`", "did you mean `seed`?")),
    Case(
        "unknown key of the merge", _merge(LINEAR + "  guidence: drop\n"), 4, "recipe.unknown-key", at(8,
        3, "`guidence`", "did you mean `guidance`?"),
    ),
    Case(
        "unknown key of the output", _merge(LINEAR + "output: {layot: bfl}\n"),
        4, "recipe.unknown-key", at(8, 10, "`layot`", "did you mean `layout`?"),
    ),
    Case(
        "unknown key of a rule", _merge(LINEAR + "  rules:\n    - {match: img_in.*, tak: a}\n"),
        4, "recipe.unknown-key", at(9, 25, "`tak`", "did you mean `take`?"),
    ),
    Case(
        "unknown key of a model", _text("fluxsmith: 1\nmodels:\n  a: {chekpoint: x}\nmerge: a\n"),
        4, "recipe.unknown-key", at(3, 7, "`chekpoint`", "did you mean `checkpoint`?"),
    ),
    Case(
        "unknown key of a step", _merge("steps:\n  s: {method: linear, inptus: [a, b]}\nmerge: s\n"),
        4, "recipe.unknown-key", at(6, 23, "`inptus`", "did you mean `inputs`?"),
    ),
    Case("duplicate key", _merge(LINEAR + "  method: ties\n"), 4, "recipe.duplicate-key", at(8, 3)),
    Case("duplicate model", _text("fluxsmith: 1\nmodels:\n  a: {a}\n  a: {b}\nmerge: a\n"), 4, "recipe.duplicate-key", at(4, 3)),
    Case("no merge", _merge("seed: 1\n"), 4, "recipe.missing-key", ["`merge`", "{inputs}/recipe.yaml"]),
    Case("no match in a rule", _merge(LINEAR + "  rules:\n    - {take: a}\n"), 4, "recipe.missing-key", at(9, 7, "match")),
    # Types
    Case("seed of text", _merge("seed: seven\n" + LINEAR), 4, "recipe.bad-value", at(5, 1, "`seed`", "integer")),
    Case("seed of quoted digits", _merge("seed: '7'\n" + LINEAR), 4, "recipe.bad-value", at(5, 1, "`seed`")),
    Case("seed that is a date", _merge("seed: 2026-11-20\n" + LINEAR), 4, "recipe.bad-value", at(5, 1, "`seed`")),
    Case("layout that is none", _merge(LINEAR + "output: {layout: bfll}\n"), 4, "recipe.bad-value", at(8, 10, "layout")),
    Case("dtype that is none", _merge(LINEAR + "output: {dtype: int4}\n"), 4, "recipe.bad-value", at(8, 10, "dtype")),
    Case("shard size that is none", _merge(LINEAR + "output: {shard_size: large}\n"), 4, "recipe.bad-value", at(8, 10, "`large`", "10GB")),
    Case("negative shard size", _merge(LINEAR + "output: {shard_size: -5}\n"), 4, "recipe.bad-value", at(8, 10)),
    Case("inputs that are a word", _merge("merge:\n  method: linear\n  inputs: a\n"), 4, "recipe.bad-value", at(7, 3, "inputs")),
    Case("input that is a number", _merge("merge:\n  method: linear\n  inputs: [a, 7]\n"), 4, "recipe.bad-value", at(7, 15, "inputs")),
    Case("models that are a list", _text("fluxsmith: 1\nmodels: [a]\nmerge: a\n"), 4, "recipe.bad-value", at(2, 1, "models")),
    Case("reference that is a number", _text("fluxsmith: 1\nmodels:\n  a: 7\nmerge: a\n"), 4, "recipe.bad-value", at(3, 3)),
    Case(
        "weight of text", _merge("merge:\n  method: linear\n  inputs:\n    - {model: a, weight: heavy}\n    - b\n"),
        4, "recipe.bad-value", at(8, 18, "heavy"),
    ),
    Case(
        "weight that is no number", _merge("merge:\n  method: linear\n  inputs:\n    - {model: a, weight: .nan}\n    - b\n"),
        4, "recipe.bad-value", at(8, 18, "nan"),
    ),
    Case(
        "infinite weight", _merge("merge:\n  method: linear\n  inputs:\n    - {model: a, weight: .inf}\n    - b\n"),
        4, "recipe.bad-value", at(8, 18, "inf"),
    ),
    Case("density of text", _merge(TIES + "  density: half\n"), 4, "recipe.bad-value", at(9, 3, "`density`", "half")),
    Case("density above one", _merge(TIES + "  density: 1.5\n"), 4, "recipe.bad-value", at(9, 3, "`density`", "1.5")),
    Case(
        "densities of another count", _merge(TIES + "  density: [0.2, 0.8]\n"),
        4, "recipe.wrong-length", at(9, 3, "`density`", "2 are given"),
    ),
    Case(
        "density of an input above one", _merge("merge:\n  method: ties\n  base: a\n  inputs: [{model: b, density: 1.5}]\n"),
        4, "recipe.bad-value", at(8, 23, "`density`", "1.5"),
    ),
    Case("negative density", _merge(TIES + "  density: -0.1\n"), 4, "recipe.bad-value", at(9, 3, "`density`", "-0.1")),
    Case("density that is no number", _merge(TIES + "  density: .nan\n"), 4, "recipe.bad-value", at(9, 3, "`density`", "nan")),
    Case("whole number with a part", _merge(KARCHER + "  iterations: 2.5\n"), 4, "recipe.bad-value", at(8, 3, "`iterations`", "2.5")),
    Case(
        "option per input that is none", _merge(WEIGHTED + "\n  inputs: [a, {model: b, alpha: 0.4}]\n"),
        4, "recipe.unknown-key", at(7, 26),
    ),
    Case("density that is true", _merge(TIES + "  density: true\n"), 4, "recipe.bad-value", at(9, 3, "`density`")),
    Case("word that is none", _merge(TIES + "  sign: loudest\n"), 4, "recipe.bad-value", at(9, 3, "`sign`", "magnitude, count", "loudest")),
    Case("switch that is a word", _merge(TIES + "  normalize: 'yes'\n"), 4, "recipe.bad-value", at(9, 3, "`normalize`")),
    Case("weights as one number", _merge(LINEAR + "  weights: 0.5\n"), 4, "recipe.bad-value", at(8, 3, "`weights`")),
    Case("selector in a map with text", _merge(TIES + "  density: {default: 0.5, single: some}\n"), 4, "recipe.bad-value", at(9, 27)),
    # Methods and options
    Case(
        "unknown method", _merge("merge:\n  method: teis\n  inputs: [a, b]\n"), 4, "recipe.unknown-method", at(6,
        3, "`teis`", "did you mean `ties`?"),
    ),
    Case("unknown option", _merge(TIES + "  densty: 0.4\n"), 4, "recipe.unknown-key", at(9, 3, "`densty`", "did you mean `density`?")),
    Case("option of another method", _merge(LINEAR + "  density: 0.4\n"), 4, "recipe.unknown-key", at(8, 3, "`density`", "linear")),
    Case("no method", _merge("merge:\n  inputs: [a, b]\n"), 4, "recipe.no-method", at(5, 1)),
    Case("no inputs", _merge("merge:\n  method: linear\n"), 4, "recipe.no-inputs", at(5, 1, "linear")),
    Case("no base", _merge("merge:\n  method: ties\n  inputs: [a, b]\n"), 4, "recipe.no-base", at(5, 1, "ties")),
    Case(
        "too many inputs", _merge("merge:\n  method: weighted_sum\n  inputs: [a, b, a]\n  alpha: 0.5\n"),
        4, "recipe.wrong-arity", at(5, 1, "weighted_sum", "2 inputs", "3 are given"),
    ),
    Case(
        "weights where there are none", _merge("merge:\n  method: weighted_sum\n  inputs: [a, {model: b, weight: 0.4}]\n"),
        4, "recipe.no-weights", at(7, 26, "weighted_sum"),
    ),
    Case("formula and method", _merge(LINEAR + "  formula: a\n"), 4, "recipe.formula-and-method", at(5, 1)),
    Case(
        "take and method in a rule", _merge(LINEAR + "  rules:\n    - {match: img_in.*, take: a, method: linear}\n"),
        4, "recipe.take-and-method", at(9, 7),
    ),
    Case(
        "take and an option in a rule", _merge(LINEAR + "  rules:\n    - {match: img_in.*, take: a, alpha: 0.5}\n"),
        4, "recipe.unknown-key", at(9, 34, "`alpha`"),
    ),
    Case(
        "take and inputs in a rule", _merge(LINEAR + "  rules:\n    - {match: img_in.*, take: a, inputs: [b]}\n"),
        4, "recipe.take-and-method", at(9, 7),
    ),
    Case("base of a formula", _merge("merge: {formula: 0.5*a + 0.5*b, base: a}\n"), 4, "recipe.formula-and-method", at(5, 1)),
    Case(
        "weights given twice", _merge("merge:\n  method: linear\n  inputs: [a, {model: b, weight: 0.4}]\n  weights: [0.5, 0.5]\n"),
        4, "recipe.no-weights", at(8, 3, "twice"),
    ),
    Case(
        "rules in a step", _merge("steps:\n  s: {method: linear, inputs: [a, b], rules: []}\nmerge: s\n"),
        4, "recipe.not-in-a-step", at(6, 39, "`rules`"),
    ),
    Case(
        "guidance in a step", _merge("steps:\n  s: {method: linear, inputs: [a, b], guidance: drop}\nmerge: s\n"),
        4, "recipe.not-in-a-step", at(6, 39, "`guidance`"),
    ),
    # Names
    Case("unknown model", _merge("merge:\n  method: linear\n  inputs: [a, kera]\n"), 4, "recipe.unknown-name", at(7, 15, "`kera`")),
    Case(
        "unknown model in a rule", _merge(LINEAR + "  rules:\n    - {match: img_in.*, take: c}\n"),
        4, "recipe.unknown-name", at(9, 25, "`c`"),
    ),
    Case("unknown model in a formula", _merge("merge: 0.5*a + 0.5*c\n"), 4, "recipe.bad-formula", at(5, 20, "`c`")),
    Case(
        "cycle", _merge("steps:\n  s: {method: linear, inputs: [a, t]}\n  t: {method: linear, inputs: [b, s]}\nmerge: s\n"), 4,
        "recipe.cycle", at(6,
        3, "s -> t -> s"),
    ),
    Case("step that uses itself", _merge("steps:\n  s: 0.5*a + 0.5*s\nmerge: 0.5*s + 0.5*b\n"), 4, "recipe.cycle", at(6, 3, "s -> s")),
    Case("unused model", _merge("merge:\n  method: linear\n  inputs: [a]\n"), 4, "recipe.unused-model", at(4, 3, "`b`")),
    Case("unused step", _merge("steps:\n  s: 0.5*a + 0.5*b\n" + LINEAR), 4, "recipe.unused-step", at(6, 3, "`s`")),
    Case(
        "model of weight zero", _merge("merge:\n  method: linear\n  inputs: [a, {model: b, weight: 0}]\n"), 4, "recipe.no-contribution",
        at(4,
        3, "`b`"),
    ),
    Case(
        "rules that leave nothing to a model", _merge("merge:\n  method: linear\n  inputs: [a, b]\n  rules: [{match: '*', take: a}]\n"),
        4, "recipe.no-contribution", at(4,
        3, "`b`"),
    ),
    # Includes, and recipes as models
    Case("include of nothing", _merge("include: [more.yaml]\n" + LINEAR), 4, "recipe.no-file", at(5, 11, "more.yaml")),
    Case("include of itself", _merge("include: [recipe.yaml]\n" + LINEAR), 4, "recipe.cycle", at(5, 11, "recipe.yaml")),
    Case(
        "include with a merge", _with_file("more.yaml", "fluxsmith: 1\nmerge: a\n", HEAD + "include: [more.yaml]\n" + LINEAR),
        4, "recipe.not-included", at(5, 11, "`merge`"),
    ),
    Case(
        "include of a name that is there",
        _with_file("more.yaml", "fluxsmith: 1\nmodels: {a: {c}}\n", HEAD + "include: [more.yaml]\n" + LINEAR),
        4, "recipe.duplicate-name", at(3, 3, "`a`"),
    ),
    Case(
        "recipe as a model that is not there", _merge("  r: {recipe: no.yaml}\nmerge: 0.5*a + 0.5*r + 0*b\n"),
        4, "recipe.no-file", at(5, 3),
    ),
    Case("recipe that is its own model", _merge("  r: {recipe: recipe.yaml}\nmerge: 0.5*a + 0.5*r\n"), 4, "recipe.cycle", at(5, 3)),
    Case(
        "recipe with rules as a model", _with_file("in.yaml", "fluxsmith: 1\nmodels: {x: {c}}\nmerge: {formula: x, missing: base}\n",
        HEAD + "  r: {recipe: in.yaml}\nmerge: 0.5*a + 0.5*r + 0*b\n"), 4, "recipe.not-in-a-step", at(5, 3),
    ),
    Case("model of both kinds", _merge("  r: {recipe: x.yaml, checkpoint: y}\nmerge: r\n"), 4, "recipe.bad-value", at(5, 3, "one of them")),
    Case("only numbers", _text("fluxsmith: 1\nsteps: {s: {literal: 0.5}}\nmerge: s\n"), 4, "recipe.wrong-space", ["a weight"], fix=False),
    # Numbers per block
    Case(
        "selector of a block that is not there", _merge(TIES + "  density: {default: 0.5, double.7: 0.1}\n"),
        4, "recipe.selector-without-match", at(9, 27, "`double.7`", "double.0-1"),
    ),
    Case(
        "selector of a part that is not there", _merge(TIES + "  density: {default: 0.5, img_atn: 0.1}\n"),
        4, "recipe.selector-without-match", at(9, 27, "`img_atn`"),
    ),
    Case(
        "selector the wrong way round", _merge(TIES + "  density: {default: 0.5, single.2-1: 0.1}\n"),
        4, "recipe.selector-without-match", at(9, 27, "`single.2-1`"),
    ),
    Case(
        "selector of a rule", _merge(LINEAR + "  rules:\n    - {match: double.7, take: a}\n"),
        4, "recipe.selector-without-match", at(9, 8, "`double.7`"),
    ),
    Case(
        "selector behind another", _merge(LINEAR + "  rules:\n    - {match: double, take: a}\n    - {match: double.1, take: b}\n"),
        4, "recipe.selector-without-match", at(10, 8, "`double.1`"),
    ),
    Case(
        "regular expression that is none", _merge(TIES + "  density: {default: 0.5, 're:(img': 0.1}\n"),
        4, "recipe.bad-selector", at(9, 27, "re:(img"),
    ),
    Case("map without default", _merge(TIES + "  density: {double: 0.5}\n"), 4, "recipe.no-default", at(9, 3, "default", "double")),
    Case("empty map", _merge(TIES + "  density: {}\n"), 4, "recipe.no-default", at(9, 3, "default")),
    Case("ramp of one number", _merge(TIES + "  density: {ramp: [0.5]}\n"), 4, "recipe.bad-ramp", at(9, 3, "two numbers")),
    Case("ramp of words", _merge(TIES + "  density: {ramp: [low, high]}\n"), 4, "recipe.bad-ramp", at(9, 3)),
    Case("ramp of nothing", _merge(TIES + "  density: {default: 0.4, single: {ramp: []}}\n"), 4, "recipe.bad-ramp", at(9, 27)),
    Case("ramp that is a number", _merge(TIES + "  density: {ramp: 0.5}\n"), 4, "recipe.bad-ramp", at(9, 3)),
    Case("ramp with .nan", _merge(TIES + "  density: {ramp: [0.5, .nan]}\n"), 4, "recipe.bad-ramp", at(9, 3)),
    Case("ramp above one", _merge(TIES + "  density: {ramp: [0.5, 2]}\n"), 4, "recipe.bad-value", at(9, 3, "`density`")),
    Case("ramp of switches", _merge(TIES + "  density: {ramp: [true, false]}\n"), 4, "recipe.bad-ramp", at(9, 3)),
    # Guidance and the rest
    Case("guidance policy that is none", _merge(LINEAR + "  guidance: remove\n"), 4, "recipe.bad-guidance", at(8, 3, "`remove`", "drop")),
    Case("guidance baked at nothing", _merge(LINEAR + "  guidance: bake()\n"), 4, "recipe.bad-guidance", at(8, 3, "`bake()`")),
    Case("guidance baked at two points", _merge(LINEAR + "  guidance: bake(3.5.1)\n"), 4, "recipe.bad-guidance", at(8, 3)),
    Case("guidance baked at infinity", _merge(LINEAR + "  guidance: bake(1e999)\n"), 4, "recipe.bad-guidance", at(8, 3)),
    Case("guidance from nobody", _merge(LINEAR + "  guidance: from(c)\n"), 4, "recipe.unknown-name", at(8, 3, "`c`")),
    Case("missing policy that is none", _merge(LINEAR + "  missing: ignore\n"), 4, "recipe.bad-value", at(8, 3, "missing")),
    Case("--set without =", _merge(LINEAR, "--set", "seed"), 2, "usage.bad-set", ["seed"]),
    Case("--set of a key that is none", _merge(LINEAR, "--set", "merge.densty=1"), 4, "recipe.unknown-key", ["densty"]),
    Case("--set of a word as a seed", _merge(LINEAR, "--set", "seed=x"), 4, "recipe.bad-value", ["seed", "integer"], fix=False),
    Case("--set through a word", _merge(LINEAR, "--set", "merge.method.x=1"), 4, "recipe.bad-set", ["merge.method.x"]),
    Case("--set in a list", _merge(LINEAR, "--set", "merge.inputs.9=a"), 4, "recipe.bad-set", ["merge.inputs.9"]),
    Case("--set of broken YAML", _merge(LINEAR, "--set", "merge.inputs=[a"), 4, "recipe.bad-yaml", ["--set merge.inputs"]),
    Case("-m of another name", _merge(LINEAR, "-m", "c=x"), 2, "usage.unknown-model", ["`c`", "a, b"], fix=False),
    Case("--guidance that is none", _merge(LINEAR, "--guidance", "off"), 4, "recipe.bad-guidance", ["`off`", "drop"], fix=False),
    # Formulas
    Case("coefficients that sum to 1.2", _formula("0.7*a + 0.5*b"), 4, "recipe.wrong-space", ["1.2", "0.7*a + 0.5*b"]),
    Case("a difference alone", _formula("a - b"), 4, "recipe.wrong-space", ["delta"]),
    Case("formula that is cut off", _formula("0.5*a + "), 4, "recipe.bad-formula", ["0.5*a +", "^"]),
    Case("formula with a word too many", _formula("0.5*a + 0.5*b please"), 4, "recipe.bad-formula", ["^"]),
    Case("formula that is a number", _formula("1 + 1"), 4, "recipe.bad-formula", ["1 + 1"]),
    Case("product of models", _formula("a*b"), 4, "recipe.bad-formula", ["formula:1:1", "^"]),
    Case("model plus number", _formula("a + 0.5"), 4, "recipe.bad-formula", ["^"]),
    Case("division by zero", _formula("a/0 + b"), 4, "recipe.bad-formula", ["division by zero"]),
    Case("division by nearly zero", _formula("a/1e-400 + b"), 4, "recipe.bad-formula", ["division by zero"]),
    Case("infinite coefficient", _formula("1e999*a + b"), 4, "recipe.bad-formula", ["inf", "^"]),
    Case("power", _formula("a**2 + b"), 4, "recipe.bad-formula", ["^"]),
    Case("attribute", _formula("a.__class__ + b"), 4, "recipe.bad-formula", ["^"]),
    Case("call of something else", _formula("__import__('os')"), 4, "recipe.unknown-method", ["__import__"]),
    Case("unknown name", _formula("0.5*a + 0.5*bb + 0*b"), 4, "recipe.bad-formula", ["`bb`", "did you mean `b`?"]),
    Case("unknown method in a formula", _formula("teis(a, b)"), 4, "recipe.unknown-method", ["did you mean `ties`?"]),
    Case(
        "unknown option in a formula", _formula("ties(a, b, densty=0.4)"),
        4, "recipe.unknown-option", ["`densty`", "did you mean `density`?"],
    ),
    Case("option without a name", _formula("ties(a, b, **{'density': 0.4})"), 4, "recipe.bad-formula", ["^"]),
    Case("option that is a model", _formula("ties(a, b, density=a)"), 4, "recipe.bad-value", ["`density`", "such as a", "^"]),
    Case("mask that is a model", _formula("weighted_sum(a, b, alpha=a)"), 4, "recipe.wrong-space", ["takes a param where a is a weight"]),
    Case("mask that is added", _formula("a + train_difference_mask(a, b, a)"), 4, "recipe.wrong-space", ["no weights (param)"]),
    Case("result that is a mask", _formula("train_difference_mask(a, b, a)"), 4, "recipe.wrong-space", ["must be a weight"], fix=False),
    Case("fallback to a delta", _formula("a | (b - a)"), 4, "recipe.wrong-space", ["weight", "delta"]),
    Case("component without a name", _formula("component(a) + 0*b"), 4, "recipe.bad-formula", ["component(dev"]),
    Case("literal of a model", _formula("weighted_sum(a, b, alpha=literal(a))"), 4, "recipe.bad-formula", ["a literal is a number"]),
    Case("option that cannot be a value", _formula("ties(a, b, density={[]: 1})"), 4, "recipe.bad-formula", ["^"]),
    Case("weights as one number in a formula", _formula("linear(a, b, weights=0.5)"), 4, "recipe.bad-value", ["`weights`"]),
    Case("weights of another count", _formula("linear(a, b, weights=[0.5])"), 4, "recipe.wrong-length", ["2 numbers", "1 are given"]),
    Case("base alone", _formula("ties(a) + 0*b"), 4, "recipe.wrong-arity", ["ties", "at least 2"]),
    Case("number as an input", _formula("ties(a, 0.5) + 0*b"), 4, "recipe.bad-formula", ["^"]),
    Case("delta where a weight is due", _formula("ties(a, b - a)"), 4, "recipe.wrong-space", ["ties takes a weight"]),
    Case("model that is not used", _formula("a"), 4, "recipe.unused-model", ["`b`"]),
    Case("model of weight zero in a formula", _formula("a + 0*b"), 4, "recipe.no-contribution", ["`b`"]),
    Case("a thousand brackets", _merge(f"merge: {_deep(1000)}\n"), 4, "recipe.bad-formula", ["{inputs}/recipe.yaml:5:"]),
    Case("ten thousand signs", _merge(f"merge: '{'+' * 10_000}a'\n"), 4, "recipe.bad-formula", ["{inputs}/recipe.yaml:5:"]),
    Case("ten thousand terms", _merge(f"merge: {'a + ' * 10_000} b\n"), 4, "recipe.bad-formula", ["{inputs}/recipe.yaml:5:"]),
    Case("empty formula", _formula(""), 4, "recipe.bad-formula", []),
]  # fmt: skip
