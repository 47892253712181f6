"""What a dialect is: how programs of one kind name the modules of an adapter, and what their numbers mean.

A key is a prefix that says which component it belongs to, a module's name in one of the family's layouts, and a last
part that says which factor it is (`lora_down.weight`: see `Algorithm.roles`). Most dialects say no more than their
prefixes; the others bring a function of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

from fluxsmith.adapters.algorithms import ALGORITHMS
from fluxsmith.adapters.dialects.writing import Writing
from fluxsmith.adapters.module import Module
from fluxsmith.adapters.reading.sidecars import Sidecar

__all__ = ["MAIN", "Dialect", "Draft", "Key", "by_prefix", "default_settings", "split_role"]

#: Stands in `prefixes` for the component that gives a family its name (transformer or unet).
MAIN = "main"


@dataclass(frozen=True, slots=True)
class Key:
    """A key taken apart: `name` is the module's after the prefix, `role` the last part, as some algorithm lists it.

    `parts` are the first and last named part (q, k, v, mlp) where the module is not the whole tensor, `layouts` are
    those in which the name may be (none: any). `label` is what the file calls the module, where that is not the key
    without its role.
    """

    component: str
    name: str
    role: str
    parts: tuple[int, int] | None = None
    joined: bool = False
    layouts: tuple[str, ...] = ()
    label: str = ""


@dataclass(frozen=True)
class Draft:
    """A module before its numbers are understood: `numbers` are those that stand in the file (alpha, ...), `name` is
    what the file calls it with its prefix; `partner` is the weight's draft of a bias."""

    name: str
    algorithm: str
    shapes: Mapping[str, tuple[int, ...]]
    numbers: Mapping[str, float]
    partner: "Draft | None" = None


@dataclass(frozen=True)
class Dialect:
    """A dialect.

    `prefixes` has for every component what may stand before its modules' names; the first is what is written.
    `joined` says that names have `_` in place of `.`; `layouts` are those whose names are used (none: any of the
    family). `vocabulary` is how factors are called (lycoris: lora_down, peft: lora_A). `parse` takes a key apart, None
    where it is not of this dialect. `settings(draft, sidecar)` gives the numbers of a module, `scale` among them;
    `sidecar` is the metadata that came with the file. Raises ValueError where they cannot be, SidecarError where that
    is the sidecar's fault. `claims(sidecar)` says that the file names this dialect's program: then it goes before others
    that read the keys alike. `notice(module)` says what a user should know of a module, "" for nothing, `remark` the
    same of all modules with their sidecar. `widens` are the modules (canonical, without
    suffix) whose weight may have more columns than the base's, which is then widened with zeros.
    `writing` says how it is written, None where it is only read.
    """

    name: str
    title: str
    prefixes: Mapping[str, tuple[str, ...]]
    joined: bool = False
    layouts: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    vocabulary: str = "peft"
    parse: "Callable[[Dialect, str], Key | None]" = field(default=lambda dialect, key: by_prefix(dialect, key))
    settings: Callable[[Draft, Sidecar], Mapping[str, float]] = field(default=lambda draft, sidecar: default_settings(draft))
    claims: Callable[[Sidecar], bool] = field(default=lambda sidecar: False)
    notice: Callable[[Module], str] = field(default=lambda module: "")
    remark: Callable[[Sequence[Module], Sidecar], str] = field(default=lambda modules, sidecar: "")
    widens: tuple[str, ...] = ()
    writing: Writing | None = None


def by_prefix(dialect: Dialect, key: str) -> Key | None:
    """Prefix, name, role: the longest prefix that fits decides."""
    found = [(p, component) for component, prefixes in dialect.prefixes.items() for p in prefixes if key.startswith(p)]
    if not found:
        return None
    prefix, component = max(found, key=lambda pair: len(pair[0]))
    name, role = split_role(key[len(prefix) :])
    if role == "scale":  # a norm's own name: only BFL's control adapters have values there
        return None
    return Key(component, name, role, None, dialect.joined, dialect.layouts) if name and role else None


def split_role(text: str) -> tuple[str, str]:
    """A module's name and the last part of its key, the longest that any algorithm knows; ("", "") where none does."""
    for role in _ROLES:
        if text.endswith("." + role):
            return text[: -len(role) - 1], role
    return "", ""


def default_settings(draft: Draft) -> dict[str, float]:
    """The numbers as kohya's and LyCORIS' files mean them: alpha over rank, 1 where there is no alpha.

    The bias of a LoRA has the scale of its weight; a difference beside a LoRA has none. Raises ValueError for an alpha that
    is no number.
    """
    of = draft.partner if draft.partner is not None and draft.partner.algorithm == draft.algorithm else draft
    algorithm = ALGORITHMS[of.algorithm]
    rank = algorithm.rank(of.shapes)
    alpha = of.numbers.get("alpha") or float(rank or 1)
    scale = algorithm.scale(alpha, rank, of.shapes)
    # Beside whole matrices alpha means nothing, and may be infinite.
    return {**{name: value for name, value in draft.numbers.items() if name != "alpha" or isfinite(value)}, "scale": scale}


_ROLES = sorted(
    {role for a in ALGORITHMS.values() for role in (*a.roles, *a.biases, *a.numbers)}, key=len, reverse=True
)  # fmt: skip
