"""What a PEFT config says about one module: its scale, and the numbers that its algorithm needs.

    LoRA, DoRA    scale = lora_alpha / r, with use_rslora lora_alpha / sqrt(r)
    LoHa, LoKr    scale = alpha / r, also for a LoKr of two whole matrices (where LyCORIS has 1)

`rank_pattern` and `alpha_pattern` replace r and alpha for modules whose name ends with (a regular expression of) one of
their keys; the first that fits is meant. A config that asks for anything that changes weights and is not read here is
refused, by name.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, cast

from fluxsmith.adapters.algorithms import ALGORITHMS
from fluxsmith.adapters.dialects.base import Draft
from fluxsmith.adapters.reading.sidecars import SidecarError
from fluxsmith.io.checkpoint import ADAPTER_CONFIG

__all__ = ["SCALED", "check_peft_config", "peft_settings"]

_READ = ("LORA", "LOHA", "LOKR", "OFT", "BOFT", "IA3")

#: Fields that say how the adapter was made, or which modules it has: their names tell that, too.
_SILENT = {
    "alora_invocation_string", "auto_mapping", "base_model_name_or_path", "bias", "block_share", "boft_block_num", "boft_block_size",
    "boft_dropout", "boft_n_butterfly_factor", "coft", "corda_config", "decompose_both", "decompose_factor", "ensure_weight_tying", "eps",
    "eva_config", "exclude_modules", "feedforward_modules", "inference_mode", "init_ia3_weights", "init_lora_weights", "init_weights",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_core",
    "module_dropout", "modules_to_save", "num_cayley_neumann_terms", "oft_block_size", "peft_type", "peft_version", "qalora_group_size",
    "rank_dropout", "rank_dropout_scale", "revision", "runtime_config", "target_modules", "task_type", "use_cayley_neumann",
    "use_effective_conv2d", "velora_config",
}  # fmt: skip
_NUMBERS = {"r", "alpha", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"}

#: Starts of a LoRA by which PEFT takes the first product out of the base's weights: the file is none of the stock base.
_SUBTRACTING = ("pissa", "olora", "corda", "loftq", "lora_ga")


def check_peft_config(config: Mapping[str, Any]) -> None:
    """Raises SidecarError where a config is for a method, a start or an option that changes weights otherwise."""
    kind = str(config.get("peft_type") or "LORA").rpartition(".")[2].upper()
    if kind not in _READ:
        raise SidecarError(
            "adapter.peft-type", f"PEFT's {kind} is not read", facts={"read": ", ".join(_READ)}, fix="use an adapter of one of these types"
        )
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(_SUBTRACTING):
        raise SidecarError(
            "adapter.changed-base",
            f"it was begun with {start}, which changed the base, and was not converted",
            facts={"init_lora_weights": start},
            fix="save it with save_pretrained(..., path_initial_model_for_weight_conversion=...), which makes a plain LoRA of it",
        )
    for name, value in config.items():
        if value and name not in _SILENT | _NUMBERS:
            raise SidecarError(
                "adapter.peft-option",
                f"its config has `{name}`, which is not read",
                facts={"expected": "null or false", "found": str(value)[:80]},
                fix=f"take the field out of {ADAPTER_CONFIG} if it does not change what the weights mean",
            )


def peft_settings(draft: Draft, name: str, config: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a module; `name` is what it is called in the model that was wrapped.

    Raises SidecarError where the config contradicts the tensors.
    """
    check_peft_config(config)
    of = draft.partner if draft.partner and draft.algorithm != "replace" else draft
    if of.algorithm not in SCALED:
        return {**draft.numbers, **_OTHERS.get(of.algorithm, _none)(config, of, name), "scale": 1.0}
    rank = _number(config, "r", "rank_pattern", name)
    alpha = _number(config, SCALED[of.algorithm], "alpha_pattern", name)
    _check_rank(of, rank, name)
    if config.get("use_dora") and "magnitude" not in of.shapes:
        raise SidecarError(
            "adapter.sidecar-contradicts",
            f"its config says use_dora, `{name}` has no magnitude",
            fix="use the config that was saved with these tensors",
        )
    return {**draft.numbers, "scale": alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)}


#: Algorithms that have a scale -> the field that has its numerator.
SCALED = {"lora": "lora_alpha", "loha": "alpha", "lokr": "alpha"}


def _check_rank(draft: Draft, rank: float, name: str) -> None:
    found = ALGORITHMS[draft.algorithm].rank(draft.shapes)
    if found is not None and found != rank:
        raise SidecarError(
            "adapter.sidecar-contradicts",
            f"its config gives `{name}` the rank {rank:g}, its tensors have {found}",
            facts={"expected": f"rank {rank:g}", "found": ", ".join(f"{role} {list(shape)}" for role, shape in draft.shapes.items())},
            fix="use the config that was saved with these tensors",
        )


def _number(config: Mapping[str, Any], field: str, patterns: str, name: str) -> float:
    """The number that a config has for a module. Raises SidecarError where it has none."""
    table: Any = config.get(patterns) or {}
    found = cast("Mapping[str, Any]", table) if isinstance(table, Mapping) else {}
    return _positive(next((found[key] for key in found if _means(rf"(.*\.)?({key})", name, patterns)), config.get(field)), field)


def _means(pattern: str, name: str, field: str) -> bool:
    """Whether a regular expression of a config is for a module. Raises SidecarError where it is none."""
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise _bad(field, "regular expressions", f"{pattern}: {error}") from None


def _positive(value: Any, field: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0 or not math.isfinite(value):
        raise _bad(field, "a number above zero", value)
    return float(value)


def _bad(field: str, expected: str, found: object) -> SidecarError:
    facts = {"expected": expected, "found": found}
    fix = "use the config that was saved with these tensors"
    return SidecarError("adapter.bad-sidecar", f"its config has no {expected.removeprefix('a ')} for `{field}`", facts=facts, fix=fix)


def _none(config: Mapping[str, Any], draft: Draft, name: str) -> dict[str, float]:
    return {}


def _ia3(config: Mapping[str, Any], draft: Draft, name: str) -> dict[str, float]:
    """Columns are scaled, not rows, in modules that are listed as feedforward."""
    listed: Any = config.get("feedforward_modules") or []
    if isinstance(listed, str):
        return {"on_input": float(_means(listed, name, "feedforward_modules"))}
    return {"on_input": float(any(name == one or name.endswith(f".{one}") for one in map(str, listed)))}


def _oft(config: Mapping[str, Any], draft: Draft, name: str) -> dict[str, float]:
    """PEFT's series for (I + Q)(I - Q)^-1 has 5 terms; without it the exact transform turns the other way."""
    terms = (
        _positive(config.get("num_cayley_neumann_terms", 5), "num_cayley_neumann_terms") if config.get("use_cayley_neumann", True) else 0.0
    )
    return {"neumann_terms": terms, "coft": _positive(config.get("eps", 6e-5), "eps") if config.get("coft") else 0.0}


_OTHERS = {"oft": _oft, "ia3": _ia3}
