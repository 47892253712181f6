"""sd-mecha's and mergekit's files that cannot be meant here, each with its place."""

from collections.abc import Callable, Sequence

from bad_input.cases import Arguments, Case, Yard

__all__ = ["FOREIGN_RECIPES"]

VERSION = "version 0.1.0\n"
MODELS = 'model "{a}"\nmodel "{b}"\n'
HEAD = VERSION + MODELS


def _mecha(text: str, *options: object) -> Callable[[Yard], Arguments]:
    return lambda yard: yard.recipe(text, *options, name="recipe.mecha")


def _kit(text: str, *options: object) -> Callable[[Yard], Arguments]:
    return lambda yard: yard.recipe(text, *options)


def mecha(line: int, column: int, *words: str) -> Sequence[str]:
    """The place of an error in the .mecha file, and more words of its message."""
    return [f"--> {{inputs}}/recipe.mecha:{line}:{column}\n", *words]


def kit(line: int, column: int, *words: str) -> Sequence[str]:
    """The place of an error in mergekit's file, and more words of its message."""
    return [f"--> {{inputs}}/recipe.yaml:{line}:{column}\n", *words]


LINEAR = "merge_method: linear\n"
TIES = "merge_method: ties\nbase_model: {a}\n"
B = "models: [{model: {b}, parameters: {weight: 1}}]\n"

FOREIGN_RECIPES = [
    # .mecha
    Case("mecha: of another version", _mecha("version 0.2.0\n" + MODELS), 4, "recipe.mecha-version", mecha(1, 1, "version 0.1.0")),
    Case("mecha: empty", _mecha(""), 4, "recipe.mecha-version", mecha(1, 1)),
    Case("mecha: only a version", _mecha(VERSION), 4, "recipe.no-models", mecha(1, 1)),
    Case("mecha: a line that is none", _mecha(HEAD + "mergo &0 &1\n"), 4, "recipe.bad-mecha", mecha(4, 1, "did you mean `merge`?")),
    Case(
        "mecha: a value that is not yet there", _mecha(HEAD + 'merge "weighted_sum" &0 &2\n'),
        4, "recipe.unknown-name", mecha(4, 25, "`&2`"),
    ),
    Case("mecha: a reference of no number", _mecha(HEAD + 'merge "weighted_sum" &0 &x\n'), 4, "recipe.unknown-name", mecha(4, 25)),
    Case("mecha: an open quote", _mecha(VERSION + 'model "{a}\n'), 4, "recipe.bad-mecha", mecha(2, 7)),
    Case("mecha: a word that is no value", _mecha(HEAD + "dict key=half\n"), 4, "recipe.bad-mecha", mecha(4, 6, "`half`")),
    Case("mecha: a dict without keys", _mecha(HEAD + "dict 0.5\n"), 4, "recipe.bad-mecha", mecha(4, 6)),
    Case("mecha: a model without a path", _mecha(VERSION + "model\n"), 4, "recipe.wrong-arity", mecha(2, 1)),
    Case("mecha: a model that is a number", _mecha(VERSION + "model 5\n"), 4, "recipe.bad-mecha", mecha(2, 7)),
    Case(
        "mecha: an unknown config", _mecha(VERSION + 'model "{a}" model_config="flux-fluxx"\n'),
        4, "recipe.mecha-option", ["recipe.mecha:2:", "flux-fluxx", "did you mean `flux-flux`?"],
    ),
    Case(
        "mecha: an unknown space", _mecha(VERSION + 'model "{a}" merge_space="weigth"\n'),
        4, "recipe.mecha-option", ["did you mean `weight`?"],
    ),
    Case(
        "mecha: an adapter that is a model", _mecha(VERSION + 'model "{a}"\nmodel "{b}" model_config="sdxl-kohya_kohya_lora"\n'
        'merge "add_difference" &0 &1\n'),
        4, "adapter.is-model", ["not an adapter"],
    ),
    Case(
        "mecha: an unknown method", _mecha(HEAD + 'merge "weighted_sun" &0 &1\n'),
        4, "recipe.unknown-method", mecha(4, 7, "`weighted_sum`"),
    ),
    Case("mecha: a method without meaning here", _mecha(HEAD + 'merge "rebasin" &0 &1\n'), 4, "recipe.mecha-method", mecha(4, 7, "SDXL")),
    Case("mecha: too few inputs", _mecha(HEAD + 'merge "weighted_sum" &0\n'), 4, "recipe.wrong-arity", mecha(4, 7, "(a, b, alpha)")),
    Case("mecha: too many inputs", _mecha(HEAD + 'merge "subtract" &0 &1 &0\n'), 4, "recipe.wrong-arity", mecha(4, 7, "(a, b)")),
    Case("mecha: no inputs", _mecha(HEAD + 'merge "n_average"\n'), 4, "recipe.wrong-arity", mecha(4, 7)),
    Case(
        "mecha: an unknown argument", _mecha(HEAD + 'merge "weighted_sum" &0 &1 alhpa=1\n'),
        4, "recipe.unknown-option", mecha(4, 28, "`alpha`"),
    ),
    Case("mecha: a number as a model", _mecha(HEAD + 'merge "weighted_sum" &0 0.5\n'), 4, "recipe.wrong-space", mecha(4, 25, "`0.5`")),
    Case("mecha: a result that is a delta", _mecha(HEAD + 'merge "subtract" &0 &1\n'), 4, "recipe.wrong-space", ["delta"]),
    Case("mecha: a result that is a number", _mecha(HEAD + "dict key=1\n"), 4, "recipe.no-models", mecha(4, 1)),
    Case("mecha: a weight that is no number", _mecha(HEAD + 'merge "weighted_sum" &0 &1 1e999\n'), 4, "recipe.bad-value", mecha(4, 28)),
    Case(
        "mecha: a density above one", _mecha(HEAD + 'merge "subtract" &1 &0\nmerge "ties_sum" &2 k=3.0\n'),
        4, "recipe.bad-value", mecha(5, 7),
    ),
    Case("mecha: --set", _mecha(HEAD, "--set", "seed=1"), 2, "usage.set-on-mecha", ["--set"]),
    Case(
        "mecha: -m of another name", _mecha(HEAD + 'merge "n_average" &0 &1\n', "-m", "x=y"),
        2, "usage.unknown-model", ["`x`", "a, b"], fix=False,
    ),
    Case("mecha: an unused model", _mecha(HEAD + 'merge "n_average" &0\n'), 4, "recipe.unused-model", mecha(3, 7, "`b`")),
    # mergekit
    Case("mergekit: slices", _kit(TIES + B + "slices: []\n"), 4, "recipe.mergekit-option", kit(4, 1, "`slices`")),
    Case(
        "mergekit: a tokenizer", _kit(TIES + B + "tokenizer_source: union\n"),
        4, "recipe.mergekit-option", kit(4, 1, "`tokenizer_source`"),
    ),
    Case(
        "mergekit: an unknown field", _kit(TIES + B + "dtpye: float32\n"),
        4, "recipe.mergekit-option", kit(4, 1, "did you mean `dtype`?"),
    ),
    Case("mergekit: an unknown method", _kit("merge_method: teis\n" + B), 4, "recipe.unknown-method", kit(1, 1, "did you mean `ties`?")),
    Case("mergekit: no models", _kit(TIES), 4, "recipe.no-inputs", kit(1, 1)),
    Case("mergekit: no base", _kit("merge_method: ties\n" + B), 4, "recipe.no-base", kit(1, 1, "ties")),
    Case("mergekit: only a base", _kit(TIES + "models: [{model: {a}}]\n"), 4, "recipe.no-inputs", kit(3, 1)),
    Case("mergekit: no weight", _kit(TIES + "models: [{model: {b}}]\n"), 4, "recipe.missing-key", kit(3, 11, "`weight`")),
    Case(
        "mergekit: an unknown parameter", _kit(TIES + B + "parameters: {densty: 0.5}\n"),
        4, "recipe.mergekit-option", kit(4, 14, "did you mean `density`?"),
    ),
    Case(
        "mergekit: a parameter of another method", _kit(TIES + B + "parameters: {t: 0.5}\n"),
        4, "recipe.mergekit-option", kit(4, 14, "`t`"),
    ),
    Case(
        "mergekit: a parameter of the merge in a model", _kit(TIES + "models: [{model: {b}, parameters: {weight: 1, lambda: 2}}]\n"),
        4, "recipe.mergekit-option", ["recipe.yaml:3:", "`lambda`"],
    ),
    Case(
        "mergekit: rescaling TIES", _kit(TIES + B + "parameters: {rescale: true}\n"),
        4, "recipe.mergekit-option", kit(4, 14, "`rescale: True`"),
    ),
    Case("mergekit: a density above one", _kit(TIES + B + "parameters: {density: 1.5}\n"), 4, "recipe.bad-value", kit(4, 14, "1.5")),
    Case("mergekit: a weight of text", _kit(TIES + B.replace("1}", "heavy}")), 4, "recipe.bad-value", ["recipe.yaml:3:", "`heavy`"]),
    Case(
        "mergekit: a switch of text", _kit(TIES + B + "parameters: {normalize: maybe}\n"),
        4, "recipe.bad-value", kit(4, 14, "`normalize`"),
    ),
    Case("mergekit: a gradient of nothing", _kit(TIES + B + "parameters: {density: []}\n"), 4, "recipe.bad-ramp", kit(4, 14)),
    Case("mergekit: a filter without match", _kit(TIES + B + "parameters: {density: {filter: self_attn, value: 1}}\n"), 4,
         "recipe.selector-without-match", kit(4, 14, "self_attn")),
    Case("mergekit: an unknown type", _kit(TIES + B + "dtype: float31\n"), 4, "recipe.bad-value", kit(4, 1, "float31")),
    Case("mergekit: a model with no adapter", _kit(LINEAR + "models: [{model: base+, parameters: {weight: 1}}]\n"), 4,
         "recipe.mergekit-option", kit(2, 11)),
    Case(
        "mergekit: a model twice", _kit(LINEAR + "models: [{model: {a}}, {model: {a}}]\n"),
        4, "recipe.duplicate-model", ["recipe.yaml:2:"],
    ),
    Case("mergekit: three models for slerp",
         _kit("merge_method: slerp\nbase_model: {a}\nmodels: [{model: {b}}, {model: {c}}]\nparameters: {t: 1}\n"),
         4, "recipe.wrong-arity", kit(3, 1, "slerp")),
    Case("mergekit: two results", _kit(TIES + B + "---\n" + TIES + B), 4, "recipe.mergekit-option", ["recipe.yaml:5:1", "`name`"]),
    Case("mergekit: documents in a circle", _kit("name: x\nmerge_method: linear\nmodels: [{model: y, parameters: {weight: 1}}]\n---\n"
         "name: y\nmerge_method: linear\nmodels: [{model: x, parameters: {weight: 1}}]\n"), 4, "recipe.cycle", ["recipe.yaml:1:1"]),
    Case(
        "mergekit: a document that is not used", _kit("name: x\n" + LINEAR + B + "---\n" + TIES + B),
        4, "recipe.unused-step", ["recipe.yaml:1:1"],
    ),
    Case("mergekit: --set of a list", _kit(TIES + B, "--set", "models.5=1"), 4, "recipe.bad-set", ["models.5"]),
]  # fmt: skip
