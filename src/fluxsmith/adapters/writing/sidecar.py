"""What stands beside an adapter's tensors in PEFT's dialects: the JSON in the header, or adapter_config.json.

Both say rank and alpha by module: `r` and `lora_alpha` for most, `rank_pattern` and `alpha_pattern` for the others.
PEFT matches a pattern's name against the *end* of a module's name, so that `proj_out` also means every block's; patterns
therefore name every module in full, longest names first, and the first that fits is the module's own.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fluxsmith.adapters.dialects import MAIN, Dialect
from fluxsmith.adapters.dialects.peft_rules import SCALED
from fluxsmith.adapters.reading.sidecars import DIFFUSERS
from fluxsmith.adapters.writing.scales import alpha_of
from fluxsmith.errors import IncompatibleError

if TYPE_CHECKING:
    from fluxsmith.adapters.tensors import Outline

__all__ = ["peft_config", "sidecars"]

Named = Sequence[tuple[str, "Outline"]]


def sidecars(dialect: Dialect, modules: Named, main: str) -> tuple[dict[str, str], dict[str, str]]:
    """Fields of the header, and small files, that say what the tensors do not. `main` is the family's main component.

    Raises IncompatibleError where one description cannot hold all modules.
    """
    writing = dialect.writing
    if writing is None or writing.scale in ("alpha", "nowhere"):
        return {}, {}
    if writing.scale == "config":
        config = {"peft_version": "0.13.0", "base_model_name_or_path": None, "task_type": None, **peft_config(modules)}
        return {}, {"adapter_config.json": json.dumps(config, indent=2) + "\n"}
    found: dict[str, Any] = {}
    for component in dict.fromkeys(module.target.component for _, module in modules):
        prefix = dialect.prefixes[MAIN if component == main else component][0]
        config = peft_config([(name, module) for name, module in modules if module.target.component == component])
        found |= {prefix + key: value for key, value in config.items()}
    return {DIFFUSERS: json.dumps(found, indent=2)}, {}


def peft_config(modules: Named) -> dict[str, Any]:
    """The fields of a peft.LoraConfig or LoHaConfig that these modules need; names are dotted, without prefix."""
    named = [(name, module) for name, module in modules if not module.target.stored.endswith(".bias")]
    dora = {not {"magnitude", "dora_scale"}.isdisjoint(module.shapes) for _, module in named}
    if len(dora) > 1:
        raise IncompatibleError(
            "adapter.mixed-algorithms",
            "one PEFT adapter is either all DoRA or all LoRA, this one has both",
            fix="convert with --as lora, or to another dialect, such as kohya",
        )
    kinds = {module.algorithm for _, module in named}
    if len(kinds) > 1:
        raise IncompatibleError(
            "adapter.mixed-algorithms",
            f"one PEFT adapter has one algorithm, this one has {', '.join(sorted(kinds))}",
            fix="convert with --as lora, or to another dialect, such as kohya",
        )
    kind = kinds.pop()
    ranks = {name: module.rules.rank(module.shapes) or 1 for name, module in named}
    alphas = {name: _plain(alpha_of(module) or ranks[name]) for name, module in named}
    found = {
        "peft_type": kind.upper(), "r": _most(ranks), SCALED[kind]: _most(alphas), "rank_pattern": _pattern(ranks),
        "alpha_pattern": _pattern(alphas), "target_modules": _targets(list(ranks)), "inference_mode": True,
    }  # fmt: skip
    if kind != "lora":
        return found
    biases = any(module.target.stored.endswith(".bias") for _, module in modules)
    return {**found, "use_rslora": False, "use_dora": dora == {True}, "lora_bias": biases, "bias": "none"}


def _plain(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def _most(values: Mapping[str, float]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _pattern(values: Mapping[str, Any]) -> dict[str, Any]:
    if len(set(values.values())) == 1:
        return {}
    return dict(sorted(values.items(), key=lambda item: (-len(item[0]), item[0])))


def _targets(names: Sequence[str]) -> list[str] | str:
    """The modules; as one regular expression where a name could also be the end of another one's."""
    if all("." in name for name in names):
        return sorted(names)
    return "|".join(re.escape(name) for name in sorted(names))
