"""A recipe: the wish. An expression, the rules that take its place for some tensors, and how to write the result."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from fluxsmith.errors import RecipeError
from fluxsmith.recipes.expressions import Adapter, Expression, Model, walk
from fluxsmith.recipes.selectors import Selector

__all__ = ["Guidance", "Missing", "OutputOptions", "Recipe", "Rule"]

Missing = Literal["error", "skip", "base"]
_POLICY = re.compile(r"^(keep|drop|zero|bake\(([-+.\de]+)\)|from\(([\w.-]+)\))$")


@dataclass(frozen=True)
class Guidance:
    """What becomes of FLUX.1's guidance layers where some inputs have them and some do not.

    keep      the inputs that have them are merged without the others
    drop      left out: the result has the shape of schnell (changes what the other inputs do)
    zero      kept with a zero output layer: the shape of dev, exactly without effect
    bake(g)   folded into the time embedding, exact at guidance g, then left out
    from(m)   as in model m: its layers where it has them, none where it has none
    """

    policy: Literal["keep", "drop", "zero", "bake", "from"]
    value: float = 0.0
    model: str = ""

    @classmethod
    def parse(cls, text: str) -> "Guidance":
        """Read `keep`, `drop`, `zero`, `bake(3.5)` or `from(NAME)`; raises RecipeError for anything else."""
        match = _POLICY.match(text.replace(" ", ""))
        try:
            if match is None:
                raise ValueError
            if match[2] and math.isfinite(float(match[2])):
                return cls("bake", value=float(match[2]))
            if match[2]:
                raise ValueError
            if match[3]:
                return cls("from", model=match[3])
            return cls(match[1])  # pyright: ignore[reportArgumentType]
        except ValueError:
            raise RecipeError(
                "recipe.bad-guidance", f"`{text}` is no guidance policy", facts={"known": "keep, drop, zero, bake(3.5), from(MODEL)"}
            ) from None

    def __str__(self) -> str:
        argument = {"bake": f"({self.value:g})", "from": f"({self.model})"}
        return self.policy + argument.get(self.policy, "")


@dataclass(frozen=True)
class Rule:
    """In place of the merge, for tensors that the selector matches. First match wins."""

    selector: Selector
    expression: Expression


@dataclass(frozen=True)
class OutputOptions:
    """How the result is written; None means as the first input has it.

    `dtype` names an element type (`BF16`) or a scheme (`fp8_scaled`), which leaves the tensors that match one of the
    selectors `unquantised` in the type that the inputs have.
    """

    layout: Literal["bfl", "diffusers", "comfy", "ldm", "sgm", "transformers", "structural", "separate"] | None = None
    dtype: str | None = None
    shard_size: int | None = None
    unquantised: tuple[Selector, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A whole recipe.

    `missing` says what to do where an input lacks a tensor that another has: `error`, `skip` (average the others) or
    `base` (take the base's). `compute` is the element type of the arithmetic, `structural` reads every file key by
    key, without knowing its family.

    `components` are those that the merge makes (none: all that every input has, where there is a `rest`; else all). `rest` are
    models of which everything that the merge does not make is copied as it is stored.
    """

    root: Expression
    rules: tuple[Rule, ...] = ()
    guidance: Guidance | None = None
    missing: Missing = "error"
    output: OutputOptions = field(default_factory=OutputOptions)
    seed: int = 0
    title: str = ""
    compute: Literal["fp32", "fp16", "bf16"] = "fp32"
    structural: bool = False
    strip: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    components: tuple[str, ...] = ()
    rest: tuple[Model, ...] = ()

    def models(self) -> list[Model]:
        """Every model of the recipe, once, in order of first use; raises RecipeError where two share a name."""
        return [leaf for leaf in self._leaves() if isinstance(leaf, Model)]

    def adapters(self) -> list[Adapter]:
        """Every adapter of the recipe, once, in order of first use; raises RecipeError where two share a name."""
        return [leaf for leaf in self._leaves() if isinstance(leaf, Adapter)]

    def _leaves(self) -> list[Model | Adapter]:
        found: dict[int, Model | Adapter] = {}
        for root in (self.root, *(rule.expression for rule in self.rules), *self.rest):
            for node in walk(root):
                if isinstance(node, (Model, Adapter)):
                    found.setdefault(id(node), node)
        by_name: dict[str, Model | Adapter] = {}
        for leaf in found.values():
            if by_name.setdefault(leaf.name, leaf) is not leaf:
                raise RecipeError(
                    "recipe.duplicate-model",
                    f"two models are called `{leaf.name}`",
                    facts={"one": by_name[leaf.name].reference, "other": leaf.reference},
                    fix='name them: fs.model("...", name="a")',
                )
        return list(by_name.values())

    def with_output(self, **changes: object) -> "Recipe":
        """The same recipe with some output options replaced; None leaves one as it is."""
        given = {key: value for key, value in changes.items() if value is not None}
        return replace(self, output=replace(self.output, **given))  # pyright: ignore[reportArgumentType]
