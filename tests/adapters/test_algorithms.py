"""Every algorithm makes the delta that the module of its own library applies, on any rows."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters.algorithm_deltas import TOLERANCE, delta, fits, relative, shapes_of
from fluxsmith.adapters.algorithms import ALGORITHMS, Algorithm, find_algorithm
from fluxsmith.adapters.dialects import Draft
from fluxsmith.adapters.dialects.base import default_settings


def matrix_of(layer: nn.Module, weight: Tensor) -> Tensor:
    """The weight that a linear layer or a convolution has in effect: its answers to all unit inputs of one patch."""
    with torch.no_grad():
        units = torch.eye(weight[0].numel(), dtype=weight.dtype).reshape(-1, *weight.shape[1:])
        answers = layer(units) - layer(torch.zeros_like(units))
    return answers.flatten(1).T.reshape(weight.shape)


def randomise(module: nn.Module) -> None:
    numbers = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=numbers) * 0.3)


def layer_of(kind: str) -> Any:
    torch.manual_seed(3)
    if kind == "linear":
        return nn.Linear(12, 24).double()
    return nn.Conv2d(12, 24, int(kind[-1])).double()


# -- LyCORIS --------------------------------------------------------------------------------------------------------------

LYCORIS: list[tuple[str, str, dict[str, Any]]] = [
    ("LoConModule", "linear", {}),
    ("LoConModule", "conv3", {}),
    ("LoConModule", "conv1", {}),
    ("LoConModule", "conv3", {"use_tucker": True}),
    ("LoConModule", "linear", {"rs_lora": True}),
    ("LoConModule", "linear", {"weight_decompose": True}),
    ("LoConModule", "conv3", {"weight_decompose": True}),
    ("LoConModule", "linear", {"weight_decompose": True, "wd_on_out": False}),
    ("LoConModule", "conv3", {"weight_decompose": True, "wd_on_out": False}),
    ("LohaModule", "linear", {}),
    ("LohaModule", "conv3", {}),
    ("LohaModule", "conv1", {}),
    ("LohaModule", "conv3", {"use_tucker": True}),
    ("LohaModule", "linear", {"weight_decompose": True}),
    ("LohaModule", "conv3", {"weight_decompose": True, "wd_on_out": False}),
    ("LokrModule", "linear", {"factor": 4}),
    ("LokrModule", "linear", {"factor": 4, "full_matrix": True}),
    ("LokrModule", "linear", {"factor": 4, "unbalanced_factorization": True, "full_matrix": True}),
    ("LokrModule", "linear", {"factor": 2, "unbalanced_factorization": True}),
    ("LokrModule", "linear", {"decompose_both": True, "lora_dim": 1}),
    ("LokrModule", "conv3", {"factor": 2}),
    ("LokrModule", "conv3", {"factor": 2, "use_tucker": True}),
    ("LokrModule", "conv3", {"factor": 4, "full_matrix": True}),
    ("LokrModule", "conv1", {"factor": 2}),
    ("LokrModule", "linear", {"factor": 4, "weight_decompose": True}),
    ("LokrModule", "linear", {"factor": 4, "weight_decompose": True, "wd_on_out": False}),
    ("FullModule", "linear", {}),
    ("FullModule", "conv3", {}),
    ("DiagOFTModule", "linear", {}),
    ("DiagOFTModule", "linear", {"constraint": 0.05}),
    ("DiagOFTModule", "linear", {"rescaled": True, "constraint": 0.05}),
    ("DiagOFTModule", "conv3", {"rescaled": True}),
    ("ButterflyOFTModule", "linear", {"lora_dim": 6}),
    ("ButterflyOFTModule", "linear", {"lora_dim": 6, "rescaled": True, "constraint": 0.02}),
    ("ButterflyOFTModule", "conv3", {"lora_dim": 6, "rescaled": True}),
    ("IA3Module", "linear", {}),
    ("IA3Module", "linear", {"train_on_input": True}),
    ("IA3Module", "conv3", {}),
    ("IA3Module", "conv3", {"train_on_input": True}),
    ("GLoRAModule", "linear", {}),
    ("GLoRAModule", "conv3", {}),
    ("GLoRAModule", "conv1", {}),
]  # fmt: skip


def lycoris_module(kind: str, layer: nn.Module, options: Mapping[str, Any]) -> Any:
    from lycoris import modules

    made: nn.Module = getattr(modules, kind)("module", layer, 1.0, **{"lora_dim": 4, "alpha": 3.0, **options})
    randomise(made)
    return made.eval()


def lycoris_draft(module: Any) -> tuple[Draft, dict[str, Tensor]]:
    """What its file has, as it is opened."""
    stored = module.custom_state_dict() or module.state_dict()
    stored = {key: value.detach().clone() for key, value in stored.items() if key != "diff_b"}
    algorithm = find_algorithm({last: tuple(value.shape) for last, value in stored.items()})
    assert algorithm is not None
    factors = {algorithm.roles[last]: value for last, value in stored.items() if last in algorithm.roles}
    numbers = {algorithm.numbers[last]: float(value) for last, value in stored.items() if last not in algorithm.roles}
    return Draft("module", algorithm.name, shapes_of(factors), numbers), factors


@pytest.mark.parametrize(("kind", "layer", "options"), LYCORIS, ids=lambda v: "-".join(v) if isinstance(v, dict) else v)
def test_lycoris(kind: str, layer: str, options: dict[str, Any]) -> None:
    # The library's rotations are in fp32, whatever the model's type is.
    dtype = torch.float32 if "OFT" in kind else torch.float64
    base = layer_of(layer).to(dtype)
    weight = base.weight.detach().clone()
    module = lycoris_module(kind, base, options).to(dtype)
    module.apply_to()
    draft, factors = lycoris_draft(module)
    expected = matrix_of(base, weight) - weight
    algorithm = ALGORITHMS[draft.algorithm]
    assert fits(algorithm.shape(draft.shapes), weight)
    assert algorithm.suits(draft.shapes, default_settings(draft), tuple(weight.shape))
    assert relative(delta(algorithm, factors, default_settings(draft), weight), expected) <= TOLERANCE


def test_norms_of_lycoris() -> None:
    from lycoris.modules import NormModule

    layer = nn.LayerNorm(16)
    module: Any = NormModule("module", layer)
    randomise(module)
    before = (layer.weight.detach().clone(), layer.bias.detach().clone())
    after = module.get_merged_weight()
    for last, old, new in zip(("w_norm", "b_norm"), before, after, strict=True):
        algorithm = find_algorithm({last: (16,)}, bias=last == "b_norm")
        assert algorithm is not None and algorithm.name == "diff"
        assert relative(delta(algorithm, {"diff": module.state_dict()[last]}, {"scale": 1.0}, old), new.detach() - old) <= TOLERANCE


# -- PEFT -----------------------------------------------------------------------------------------------------------------


def peft_config(kind: str, options: Mapping[str, Any]) -> Any:
    import peft

    return getattr(peft, kind)(target_modules=["layer"], **options)


PEFT: list[tuple[str, str, dict[str, Any], dict[str, float]]] = [
    ("LoraConfig", "linear", {"r": 4, "lora_alpha": 3}, {"scale": 0.75}),
    ("LoraConfig", "conv3", {"r": 4, "lora_alpha": 3}, {"scale": 0.75}),
    ("LoraConfig", "linear", {"r": 4, "lora_alpha": 3, "use_rslora": True}, {"scale": 1.5}),
    ("LoraConfig", "linear", {"r": 4, "lora_alpha": 3, "use_dora": True}, {"scale": 0.75}),
    ("LoraConfig", "conv3", {"r": 4, "lora_alpha": 3, "use_dora": True}, {"scale": 0.75}),
    ("LoHaConfig", "linear", {"r": 4, "alpha": 3}, {"scale": 0.75}),
    ("LoHaConfig", "conv3", {"r": 4, "alpha": 3, "use_effective_conv2d": True}, {"scale": 0.75}),
    ("LoHaConfig", "conv3", {"r": 4, "alpha": 3}, {"scale": 0.75}),
    ("LoKrConfig", "linear", {"r": 2, "alpha": 3}, {"scale": 1.5}),
    ("LoKrConfig", "linear", {"r": 8, "alpha": 3}, {"scale": 0.375}),
    ("LoKrConfig", "linear", {"r": 1, "alpha": 3, "decompose_both": True}, {"scale": 3.0}),
    ("LoKrConfig", "conv3", {"r": 1, "alpha": 3, "use_effective_conv2d": True}, {"scale": 3.0}),
    ("LoKrConfig", "conv3", {"r": 1, "alpha": 3}, {"scale": 3.0}),
    ("OFTConfig", "linear", {"oft_block_size": 4}, {}),
    ("OFTConfig", "linear", {"oft_block_size": 4, "num_cayley_neumann_terms": 3}, {"neumann_terms": 3}),
    ("OFTConfig", "linear", {"oft_block_size": 4, "num_cayley_neumann_terms": 7}, {"neumann_terms": 7}),
    ("OFTConfig", "linear", {"oft_block_size": 4, "use_cayley_neumann": False}, {"neumann_terms": 0}),
    ("OFTConfig", "linear", {"oft_block_size": 4, "block_share": True}, {}),
    ("OFTConfig", "linear", {"oft_block_size": 4, "coft": True, "eps": 0.3}, {"coft": 0.3}),
    ("BOFTConfig", "linear", {"boft_block_size": 4}, {}),
    ("BOFTConfig", "linear", {"boft_block_size": 3}, {}),
    ("BOFTConfig", "conv3", {"boft_block_size": 4}, {}),
    ("IA3Config", "linear", {"feedforward_modules": []}, {}),
    ("IA3Config", "linear", {"feedforward_modules": ["layer"]}, {}),
    ("IA3Config", "conv3", {"feedforward_modules": []}, {}),
    ("IA3Config", "conv3", {"feedforward_modules": ["layer"]}, {}),
]  # fmt: skip


def peft_factors(kind: str, base: nn.Module, options: Mapping[str, Any]) -> tuple[Algorithm, dict[str, Tensor], Any]:
    from peft import get_peft_model, get_peft_model_state_dict

    tuned: Any = get_peft_model(nn.ModuleDict({"layer": base}), peft_config(kind, options)).double()
    numbers = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "base_layer" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=numbers) * 0.3)
    stored = {key.removeprefix("base_model.model.layer."): value.clone() for key, value in get_peft_model_state_dict(tuned).items()}
    algorithm = find_algorithm({last: tuple(value.shape) for last, value in stored.items()})
    assert algorithm is not None
    return algorithm, {algorithm.roles[last]: value for last, value in stored.items()}, tuned


@pytest.mark.parametrize(("kind", "layer", "options", "settings"), PEFT, ids=lambda v: "-".join(map(str, v)) if isinstance(v, dict) else v)
def test_peft(kind: str, layer: str, options: dict[str, Any], settings: dict[str, float]) -> None:
    base = layer_of(layer)
    weight = base.weight.detach().clone()
    algorithm, factors, tuned = peft_factors(kind, base, options)
    forward = matrix_of(tuned.base_model.model["layer"], weight) - weight if layer == "linear" else None
    expected = tuned.merge_and_unload()["layer"].weight.detach() - weight
    assert forward is None or relative(forward, expected) <= TOLERANCE
    assert fits(algorithm.shape(shapes_of(factors)), weight)
    assert algorithm.suits(shapes_of(factors), settings, tuple(weight.shape))
    assert relative(delta(algorithm, factors, settings, weight), expected) <= TOLERANCE


def test_bias_of_a_peft_lora() -> None:
    from peft import get_peft_model, get_peft_model_state_dict

    base = layer_of("linear")
    before = base.bias.detach().clone()
    config = peft_config("LoraConfig", {"r": 4, "lora_alpha": 3, "lora_bias": True})
    tuned: Any = get_peft_model(nn.ModuleDict({"layer": base}), config).double()
    bias = get_peft_model_state_dict(tuned)["base_model.model.layer.lora_B.bias"]
    nn.init.normal_(bias)
    algorithm = find_algorithm({"lora_B.bias": (24,)}, bias=True)
    assert algorithm is not None
    factors = {algorithm.biases["lora_B.bias"]: bias.clone()}
    assert algorithm.shape(shapes_of(factors)) == (24,)
    expected = tuned.merge_and_unload()["layer"].bias.detach() - before
    assert relative(delta(algorithm, factors, {"scale": 0.75}, before), expected) <= TOLERANCE


def test_rows_of_a_peft_ia3_scale_the_bias() -> None:
    base = layer_of("linear")
    before = base.bias.detach().clone()
    algorithm, factors, tuned = peft_factors("IA3Config", base, {"feedforward_modules": []})
    assert algorithm.turns_bias(shapes_of(factors), {})
    assert not algorithm.turns_bias({"l": (1, 12)}, {})
    assert not algorithm.turns_bias({"w": (24,)}, {"on_input": 0.0})
    expected = tuned.merge_and_unload()["layer"].bias.detach() - before
    assert relative(delta(algorithm, factors, {}, before), expected) <= TOLERANCE


def test_butterflies_of_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT takes more than one step on a GPU alone: what it asks of its CUDA code is a block-diagonal matrix."""
    from peft.tuners.boft import layer as boft

    class BlockDiagonal:
        @staticmethod
        def apply(blocks: Tensor) -> Tensor:
            return torch.stack([torch.block_diag(*step) for step in blocks])

    monkeypatch.setattr(boft, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(boft, "FastBlockDiag", BlockDiagonal)
    for block, steps in ((4, 2), (2, 3), (2, 2)):
        base = nn.Linear(16, 10).double()
        weight = base.weight.detach().clone()
        algorithm, factors, tuned = peft_factors("BOFTConfig", base, {"boft_block_size": block, "boft_n_butterfly_factor": steps})
        assert factors["butterfly"].shape[0] == steps
        expected = tuned.merge_and_unload()["layer"].weight.detach() - weight
        assert relative(delta(algorithm, factors, {}, weight), expected) <= TOLERANCE, (block, steps)
