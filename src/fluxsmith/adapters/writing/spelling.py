"""What a module is called in a dialect: the names of detection, in the other direction."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from fluxsmith.adapters.algorithms import ALGORITHMS
from fluxsmith.adapters.dialects import MAIN, Dialect, Key
from fluxsmith.adapters.dialects.writing import Writing
from fluxsmith.errors import IncompatibleError
from fluxsmith.layouts import table_of

if TYPE_CHECKING:
    from fluxsmith.adapters.module import Target
    from fluxsmith.adapters.tensors import ModuleTensors

__all__ = ["Speller", "stem_of", "titles_of", "words_of"]


class Speller:
    """The keys of modules in one dialect, for one family."""

    def __init__(self, dialect: Dialect, family: str) -> None:
        if dialect.writing is None:
            raise IncompatibleError(
                "adapter.not-writable", f"adapters are read in the dialect {dialect.name}, but not written", fix="fluxsmith list dialects"
            )
        self.dialect, self.writing = dialect, dialect.writing
        self.table = table_of(family)

    def keys(self, module: ModuleTensors) -> tuple[str, dict[str, str]]:
        """The module's name as the dialect's own programs call it, and the key of every factor by role.

        Raises IncompatibleError where the dialect has no words for the algorithm, or for what it changes.
        """
        words = self._words(module)
        keys = {role: self._key(module.target, words[role]) for role in module.factors}
        return self.name(module.target), keys

    def number_key(self, module: ModuleTensors, last: str) -> str:
        """The key of a number (alpha) of a module."""
        return self._key(module.target, last)

    def name(self, target: Target) -> str:
        """The module's dotted name, without prefix."""
        return stem_of(target, self.table.prefixes if self.table else {})

    def _key(self, target: Target, last: str) -> str:
        component = self._component(target.component)
        if component not in self.dialect.prefixes:
            raise IncompatibleError(
                "adapter.component",
                f"the dialect {self.dialect.name} has no names for {target.component}",
                facts={"tensor": target.tensor, "has": ", ".join(self.dialect.prefixes)},
                fix=f"leave it out with --components {self.main}",
            )
        prefix = self._prefix(component, target.component)
        return self.writing.spell(prefix, Key(component, self.name(target), last, target.parts, self.dialect.joined))

    def _prefix(self, component: str, name: str) -> str:
        """The first, but for `unet.` in place of `transformer.`, and a text encoder without a number where it is the only one."""
        prefixes = self.dialect.prefixes[component]
        if component == MAIN:
            return next((p for p in prefixes if p.startswith(name)), prefixes[0])
        encoders = [c for c in (self.table.components if self.table else ()) if c.startswith(("clip", "t5"))]
        return prefixes[0] if len(encoders) > 1 else next((p for p in prefixes if not re.search(r"\d_$", p)), prefixes[0])

    @property
    def main(self) -> str:
        """The component that gives the family its name."""
        return self.table.components[0] if self.table else "transformer"

    def _component(self, name: str) -> str:
        return MAIN if self.table is None or name == self.main else name

    def _words(self, module: ModuleTensors) -> Mapping[str, str]:
        """Role -> last part of its key."""
        words = words_of(self.dialect, module.algorithm, bias=module.target.stored.endswith(".bias"))
        missing = [role for role in module.factors if role not in words]
        if missing:
            raise _cannot_hold(self.dialect, self.writing, module, missing[0])
        return words


def words_of(dialect: Dialect, algorithm: str, *, bias: bool = False) -> Mapping[str, str]:
    """Role -> last part of its key, for the factors of an algorithm that a dialect's programs load; a bias has words of
    its own."""
    writing, rules = dialect.writing, ALGORITHMS[algorithm]
    if writing is None or algorithm not in writing.algorithms:
        return {}
    peft = dialect.vocabulary == "peft"
    if bias:
        own = [(last, role) for last, role in rules.biases.items() if last.startswith("lora_") == (peft and algorithm == "lora")]
        return {role: last for last, role in reversed(own)}
    words = {**(rules.stored.get("lycoris", {}) if writing.borrows else {}), **rules.stored.get(dialect.vocabulary, {})}
    if peft and algorithm in ("oft", "boft") and writing.scale != "config":  # PEFT's forms mean nothing without its config
        words = rules.stored["lycoris"] if writing.borrows else {}
    without = () if "dora" in writing.algorithms else ("magnitude", "dora_scale")
    return {role: last for role, last in words.items() if role not in without}


def stem_of(target: Target, prefixes: Mapping[str, Mapping[str, tuple[str, ...]]]) -> str:
    """The name of a target without what stands before its component's names and without `.weight`."""
    before = prefixes.get(target.component, {}).get(target.layout, ())
    known = [p for p in before if p and target.stored.startswith(p)]
    name = target.stored.removeprefix(min(known, key=len, default=""))  # names of CLIP keep their `text_model.`
    return name.rpartition(".")[0] or name


def titles_of(algorithms: Iterable[str]) -> str:
    """What algorithms are called, DoRA apart from those that it is put over."""
    titles = ["DoRA" if name == "dora" else ALGORITHMS[name].title.removesuffix(", also with DoRA") for name in algorithms]
    return ", ".join(dict.fromkeys(titles))


def _cannot_hold(dialect: Dialect, writing: Writing, module: ModuleTensors, role: str) -> IncompatibleError:
    ways = [way for way in ("diff", "lora") if way in writing.algorithms]
    return IncompatibleError(
        "adapter.algorithm",
        f"{dialect.title} has no name for the factor `{role}` of {module.rules.title}, at `{module.target.tensor}`",
        facts={"dialect": dialect.name, "holds": titles_of(writing.algorithms)},
        fix=" or ".join(f"--as {way}" + (" --rank R" if way == "lora" else "") for way in ways) or "choose another dialect",
    )
