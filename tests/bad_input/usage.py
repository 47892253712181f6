"""Wrong arguments: exit code 2, before any file is opened."""

from collections.abc import Callable

from bad_input.cases import AVERAGE, Arguments, Case, Yard

__all__ = ["USAGE"]


def _merge(*options: object, formula: str = AVERAGE) -> Callable[[Yard], Arguments]:
    return lambda yard: yard.merge(yard.tiny.a, *options, formula=formula)


def _words(*words: object) -> Callable[[Yard], Arguments]:
    return lambda yard: words


def _no_output(yard: Yard) -> Arguments:
    return ["merge", AVERAGE, "-m", f"a={yard.tiny.a}", "-m", f"b={yard.tiny.b}"]


ARGUMENTS = "usage.arguments"

USAGE = [
    Case("unknown command", _words("mrege", "x"), 2, ARGUMENTS, ["`mrege`", "did you mean `merge`?"]),
    Case("unknown option", _merge("--fast"), 2, ARGUMENTS, ["--fast", "fluxsmith merge --help"]),
    Case("misspelt option", _merge("--thread", 2), 2, ARGUMENTS, ["--thread"]),
    Case("option without its value", _merge("--dtype"), 2, ARGUMENTS, ["--dtype"]),
    Case("no output", _no_output, 2, ARGUMENTS, ["--output"]),
    Case("one word too many", _merge("more"), 2, ARGUMENTS, ["more"]),
    Case("dtype that is none", _merge("--dtype", "int4"), 2, ARGUMENTS, ["int4", "bf16"]),
    Case("layout that is none", _merge("--layout", "original"), 2, ARGUMENTS, ["original", "diffusers"]),
    Case("device that is none", _merge("--device", "tpu"), 2, ARGUMENTS, ["tpu", "cuda"]),
    Case("no threads", _merge("--threads", 0), 2, ARGUMENTS, ["--threads"]),
    Case("threads of text", _merge("--threads", "many"), 2, ARGUMENTS, ["many"]),
    Case("seed of text", _merge("--seed", "x"), 2, ARGUMENTS, ["--seed"]),
    Case("nothing to merge", _words("merge", "-o", "out"), 2, "usage.no-recipe", ["--preset"]),
    Case("recipe and preset", _merge("--preset", "flux-krea-schnell"), 2, "usage.preset-and-recipe", ["not both"], fix=False),
    Case(
        "preset that is none", _words("merge", "--preset", "flux-kera", "-o", "out"),
        2, "usage.unknown-preset", ["`flux-kera`", "list presets"],
    ),
    Case("--set on a formula", _merge("--set", "seed=1"), 2, "usage.set-on-formula", ["--set"], fix=False),
    Case("model without a name", _merge("-m", "x.safetensors"), 2, "usage.bad-model", ["x.safetensors", "NAME=REF"]),
    Case("model without a reference", _merge("-m", "x="), 2, "usage.bad-model", ["x="]),
    Case("model whose name is no word", _merge("-m", "my model=x"), 2, "usage.bad-model", ["my model=x"]),
    Case("memory of text", _merge("--memory", "much"), 2, "usage.size", ["`much`", "10GB"]),
    Case("no memory", _merge("--memory", "0GB"), 2, "usage.size", ["`0GB`"]),
    Case("negative memory", _merge("--memory", "-2GB"), 2, "usage.size", ["`-2GB`"]),
    Case("memory of .nan", _merge("--memory", "nanGB"), 2, "usage.size", ["`nanGB`"]),
    Case("infinite memory", _merge("--memory", "infGB"), 2, "usage.size", ["`infGB`"]),
    Case("shard size of text", _merge("--shard-size", "10 apples"), 2, "usage.size", ["`10 apples`"]),
]  # fmt: skip
