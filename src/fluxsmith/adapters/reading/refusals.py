"""Why an adapter is not opened: one function per error, each naming file, key, what was expected and what was found."""

from collections.abc import Collection, Mapping, Sequence

from fluxsmith.adapters.algorithms import Algorithm
from fluxsmith.adapters.dialects import Draft
from fluxsmith.adapters.module import Target
from fluxsmith.adapters.reading.detection import Reading
from fluxsmith.errors import IncompatibleError, did_you_mean
from fluxsmith.layouts import Bound

__all__ = [
    "SHOWN",
    "ambiguous",
    "bad_number",
    "changes_nothing",
    "duplicate_key",
    "is_model",
    "mixed_dialects",
    "mixed_layouts",
    "needs_base",
    "not_finite",
    "unfit_factors",
    "unknown_component",
    "unknown_dialect",
    "unknown_module",
    "unmatched",
    "wrong_family",
    "wrong_width",
]

SHOWN = 10
WHOLE = "use the complete file, as its trainer wrote it"


def wrong_family(file: str, base: Bound, others: Sequence[Reading]) -> IncompatibleError:
    """A file whose keys are those of another family than the base's; `others` are the best readings."""
    families = " or ".join(dict.fromkeys(other.table.family if other.table else "another model" for other in others))
    return IncompatibleError(
        "adapter.wrong-family",
        f"{file} is an adapter for {families}, the base is {base.family}",
        facts={"adapter": others[0].title, "base": base.checkpoint.reference},
        fix="use an adapter that was trained on this family",
    )


def unknown_dialect(file: str, keys: Collection[str], base: Bound | None, best: Reading | None) -> IncompatibleError:
    """A file that no dialect explains well enough."""
    return IncompatibleError(
        "adapter.unknown-dialect",
        f"{file} is no adapter that can be read" + (f" for {base.family}" if base else ""),
        facts={
            "file": file, "first key": next(iter(keys), "none"),
            "best": f"{best.title}, {best.score:.2f}" if best else "no reading",
        },
        fix="fluxsmith list dialects shows what is read; fluxsmith inspect FILE shows what the file holds",
    )  # fmt: skip


def is_model(file: str, family: str) -> IncompatibleError:
    """A whole model where an adapter is wanted."""
    return IncompatibleError(
        "adapter.is-model",
        f"{file} is a {family} model, not an adapter",
        facts={"file": file},
        fix="models are mixed by fluxsmith merge; fluxsmith extract TUNED BASE makes an adapter of two of them",
    )


def unknown_component(file: str, name: str, known: Collection[str]) -> IncompatibleError:
    """A component that no model of the family has."""
    return IncompatibleError(
        "adapter.unknown-component",
        f"`{name}` is no component that {file} could have",
        facts={"file": file, "components": ", ".join(known)},
        hint=did_you_mean(name, list(known)),
        fix="name components of this family",
    )


def ambiguous(file: str, one: Reading, other: Reading) -> IncompatibleError:
    """Two readings that explain as much and mean different things."""
    return IncompatibleError(
        "adapter.ambiguous-dialect",
        f"{file} can be read in two ways that mean different things",
        facts={"one": f"{one.title}, {one.score:.2f}", "other": f"{other.title}, {other.score:.2f}"},
        fix="rename its keys to those of one dialect",
    )


def mixed_dialects(file: str, best: Reading, other: Reading) -> IncompatibleError:
    """Keys of two dialects in one file: at least two adapters, whose strengths mean different things."""
    rest = [key for key in other.keys if key not in best.keys]
    return IncompatibleError(
        "adapter.mixed-dialects",
        f"{file} mixes two dialects: {best.dialect.name} and {other.dialect.name}",
        facts={
            best.dialect.name: f"{len(best.keys)} keys, first {next(iter(best.keys))}",
            other.dialect.name: f"{len(rest)} more, first {rest[0]}",
        },
        fix="split it into two files; or leave one part out with --ignore GLOB (in a recipe `ignore: [GLOB]`)",
    )


def mixed_layouts(file: str, reading: Reading) -> IncompatibleError:
    """Modules of one component under the names of two layouts: a conversion that stopped half-way."""
    layout = next(iter(reading.strays.values()))
    return IncompatibleError(
        "adapter.half-converted",
        f"{len(reading.strays)} keys of {file} have {layout} names, the others {reading.layout} names",
        facts={
            "file": file, "dialect": reading.dialect.name, reading.layout: next(iter(reading.keys)), layout: _shown(list(reading.strays)),
        },
        fix="use the file as its trainer wrote it, before it was converted",
    )  # fmt: skip


def needs_base(file: str, reading: Reading) -> IncompatibleError:
    """Factors that rotate or scale a weight, and so do not tell its size."""
    return IncompatibleError(
        "adapter.needs-base",
        f"{file} does not tell the size of the model that it is for",
        facts={"file": file, "dialect": reading.title},
        fix="give the model that it was trained on, with --base",
    )


def duplicate_key(file: str, name: str, keys: Sequence[str]) -> IncompatibleError:
    """Two keys that mean the same factor of one module."""
    return IncompatibleError(
        "adapter.duplicate-key",
        f"several keys of {file} mean the same factor of `{name}`",
        facts={"file": file, "key": _shown(keys)},
        fix="leave all but one of them out, with --ignore GLOB (in a recipe `ignore: [GLOB]`)",
    )


def unknown_module(file: str, name: str, keys: Sequence[str], roles: Collection[str]) -> IncompatibleError:
    """Factors that belong to no one algorithm together."""
    return IncompatibleError(
        "adapter.unknown-module",
        f"the factors of `{name}` belong to no one algorithm",
        facts={"file": file, "key": _shown(keys), "found": ", ".join(sorted(roles))},
        fix=WHOLE,
    )


def bad_number(file: str, key: str, shape: tuple[int, ...]) -> IncompatibleError:
    """A tensor that should be one number."""
    return IncompatibleError(
        "adapter.bad-number",
        f"`{key}` of {file} is not one number",
        facts={"file": file, "key": key, "expected": "[] or [1]", "found": list(shape)},
        fix="use the file as its trainer wrote it",
    )


def changes_nothing(file: str, dropped: Mapping[str, str]) -> IncompatibleError:
    """An adapter without a module; `dropped` gives the rule that left out each of its keys."""
    counts = {rule: list(dropped.values()).count(rule) for rule in dict.fromkeys(dropped.values())}
    return IncompatibleError(
        "adapter.changes-nothing",
        f"{file} changes no tensor: " + ("its keys are all left out by rules" if dropped else "it has no keys"),
        facts={"file": file, "left out": "\n".join(f"{count} keys by {rule}" for rule, count in counts.items()) or "none"},
        fix="leave the adapter out, or the rules" if dropped else "leave the adapter out",
    )


def unfit_factors(file: str, draft: Draft, algorithm: Algorithm, error: Exception) -> IncompatibleError:
    """Factors that do not go together (ValueError), or of which one is not there (KeyError)."""
    missing = isinstance(error, KeyError)
    what = f"lacks its factor {error}" if missing else f"has factors that do not go together: {error}"
    return IncompatibleError(
        "adapter.half-module" if missing else "adapter.rank-mismatch",
        f"`{draft.name}` of {file} {what}",
        facts={"file": file, "found": shown_shapes(draft.shapes), "algorithm": algorithm.title},
        fix=WHOLE,
    )


def wrong_width(file: str, draft: Draft, target: Target, shape: tuple[int | None, ...]) -> IncompatibleError:
    """Factors of a weight of another size than the model's."""
    return IncompatibleError(
        "adapter.wrong-width",
        f"`{draft.name}` of {file} does not fit the model's `{target.stored}`",
        facts={
            "file": file, "expected": list(target.shape),
            "found": f"[{', '.join('?' if side is None else str(side) for side in shape)}] from {shown_shapes(draft.shapes)}",
        },
        fix="use an adapter that was trained on a model of this size and kind",
    )  # fmt: skip


def not_finite(file: str, draft: Draft, error: ValueError) -> IncompatibleError:
    """A scale that is no finite number."""
    return IncompatibleError(
        "adapter.not-finite",
        f"`{draft.name}` of {file} has a scale that is no finite number: {error}",
        facts={"file": file, "expected": "a finite alpha", "found": str(error)},
        fix="set its alpha to the rank, or train it again",
    )


def unmatched(
    file: str, count: int, homeless: Mapping[str, str], reading: Reading, found: Sequence[Reading], base: Bound | None
) -> IncompatibleError:
    """Keys without a tensor in the model: `homeless` gives the component of each, "" where no dialect knows it."""
    counts = {name: list(homeless.values()).count(name) for name in dict.fromkeys(homeless.values())}
    first = next(iter(homeless))
    named = ", ".join(f"{number} {name or 'of no component'}" for name, number in counts.items())
    rival = next((f"; next best {r.title} {r.score:.2f}" for r in found if r is not reading), "")
    kept = ", ".join(base.components) if base else "transformer"
    strangers = "" in counts
    return IncompatibleError(
        "adapter.unmatched-keys",
        f"{len(homeless)} of {count} keys of {file} fit no tensor of {base.family if base else 'any model'}",
        facts={
            "dialect": f"{reading.title} (score {reading.score:.2f}{rival})",
            "first": f"{first}" + (f"  (+{len(homeless) - 1}, {named})" if len(homeless) > 1 else f"  ({named})"),
            "why": "no dialect knows these keys" if strangers else _why(homeless, base, kept),
        },
        fix="--ignore GLOB (in a recipe `ignore: [GLOB]`) drops them by rule" if strangers
        else f"--components {kept} (in a recipe `components: [{kept}]`) drops them by rule; or give a model that has them",
    )  # fmt: skip


def _why(homeless: Mapping[str, str], base: Bound | None, kept: str) -> str:
    inside = base is not None and any(component in base.components for component in homeless.values())
    return "the base has no such block or tensor" if inside else f"the base has {kept} only"


def shown_shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Roles with the shapes of their factors."""
    return ", ".join(f"{role} {list(shape)}" for role, shape in shapes.items())


def _shown(keys: Sequence[str]) -> str:
    return "\n".join(keys[:SHOWN]) + (f"\n(+{len(keys) - SHOWN})" if len(keys) > SHOWN else "")
