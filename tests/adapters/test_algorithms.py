"""Every algorithm makes the delta that the module of its own library applies, on any rows."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fluxsmith.adapters.algorithms import ALGORITHMS, Algorithm, Rows, find_algorithm
from fluxsmith.adapters.dialects import Draft
from fluxsmith.adapters.dialects.base import default_settings
from fluxsmith.errors import IncompatibleError

TOLERANCE = 1e-6


# -- what is tested: a module's delta, whole and by rows -----------------------------------------------------------------


def shapes_of(factors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {role: tuple(factor.shape) for role, factor in factors.items()}


def delta(algorithm: Algorithm, factors: Mapping[str, Tensor], settings: Mapping[str, float], weight: Tensor) -> Tensor:
    """The delta of all rows; that of some rows is the same on each of several cuts."""
    whole = on_rows(algorithm, factors, settings, weight, 0, len(weight))
    out = len(weight)
    cuts = [sorted({0, *edges, out}) for edges in ((1,), (out // 2,), (out // 3, out // 3 + 2, out - 1), range(out))]
    for cut in cuts:
        parts = [on_rows(algorithm, factors, settings, weight, start, stop) for start, stop in pairwise(cut)]
        assert relative(torch.cat(parts), whole) <= TOLERANCE, cut
    assert whole.dtype == torch.float32
    return whole


def on_rows(
    algorithm: Algorithm, factors: Mapping[str, Tensor], settings: Mapping[str, float], weight: Tensor, start: int, stop: int
) -> Tensor:
    """As the engine does it: only the rows of factors that are asked for, only what is read of the weight."""
    shapes, rows = shapes_of(factors), Rows(start, stop, tuple(weight.shape))
    ranges = algorithm.ranges(shapes, settings, rows)
    read = {role: (factor[slice(*ranges[role])] if role in ranges else factor).float() for role, factor in factors.items()}
    base = {"nothing": None, "rows": weight[start:stop].float(), "whole": weight.float()}[algorithm.reads(shapes)]
    before = None if base is None else base.clone()
    kept = {role: factor.clone() for role, factor in read.items()}
    made = algorithm.delta(read, settings, rows, base)
    assert tuple(made.shape) == (stop - start, *weight.shape[1:])
    assert before is None or (base is not None and base.equal(before))
    assert all(read[role].equal(factor) for role, factor in kept.items())
    return made


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def fits(shape: tuple[int | None, ...], weight: Tensor) -> bool:
    """A shape is that of the weight, or of the weight as a matrix."""
    wanted = tuple(weight.shape) if len(shape) == weight.dim() else (len(weight), weight[0].numel())
    return len(shape) == len(wanted) and all(a is None or a == b for a, b in zip(shape, wanted, strict=True))


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


# -- what no library here does ---------------------------------------------------------------------------------------------


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(10, 6), (10, 6, 3, 3), (6, 6)])
def test_dora_of_columns(shape: tuple[int, ...]) -> None:
    """OneTrainer: every input's weights have one norm."""
    weight, up, down = rand(*shape), rand(10, 2)[: shape[0]], rand(2, *shape[1:])
    magnitude = rand(1, 6, *[1] * (len(shape) - 2)).abs()
    turned = weight + 0.75 * (up @ down.flatten(1)).reshape(shape)
    expected = torch.empty_like(weight)
    for column in range(6):
        expected[:, column] = magnitude.flatten()[column] * turned[:, column] / turned[:, column].pow(2).sum().sqrt()
    factors = {"up": up, "down": down, "dora_scale": magnitude}
    algorithm = ALGORITHMS["lora"]
    assert algorithm.reads(shapes_of(factors)) == "whole"
    assert relative(delta(algorithm, factors, {"scale": 0.75}, weight), expected - weight) <= TOLERANCE


@pytest.mark.parametrize("shape", [(10,), (10, 1), (10, 1, 1, 1), (1, 10, 1, 1)])
def test_dora_of_rows_in_every_shape(shape: tuple[int, ...]) -> None:
    """ai-toolkit [out], LyCORIS [out, 1, ...], PEFT's convolutions [1, out, 1, 1]; a row of zeros stays zero."""
    weight, up, down = rand(10, 10), rand(10, 2), rand(2, 10)
    weight[3], up[3] = 0, 0
    turned = weight + up @ down
    expected = turned * rand(10).abs()[:, None] / turned.norm(dim=1, keepdim=True).clamp_min(1e-30) - weight
    role = "magnitude" if shape[0] == 1 else "dora_scale"
    factors = {"up": up, "down": down, role: rand(10).abs().reshape(shape)}
    assert ALGORITHMS["lora"].reads(shapes_of(factors)) == "rows"
    assert relative(delta(ALGORITHMS["lora"], factors, {"scale": 1.0}, weight), expected) <= TOLERANCE


def test_sparse_rest_of_an_extraction() -> None:
    """LyCORIS' extraction keeps the largest of what its product leaves, by coordinates of the weight as a matrix."""
    weight, up, down = rand(8, 5, 2, 2), rand(8, 2, 1, 1), rand(2, 5, 2, 2)
    rest = torch.where(rand(8, 20, seed=9).abs() > 1.2, rand(8, 20, seed=9), 0.0).to_sparse().coalesce()
    factors = {
        "up": up, "down": down, "sparse_indices": rest.indices().to(torch.int16), "sparse_values": rest.values(),
        "sparse_size": torch.tensor(rest.shape),
    }  # fmt: skip
    expected = 0.5 * ((up.flatten(1) @ down.flatten(1)) + rest.to_dense()).reshape(weight.shape)
    assert ALGORITHMS["lora"].shape(shapes_of(factors)) == (8, 5, 2, 2)
    assert relative(delta(ALGORITHMS["lora"], factors, {"scale": 0.5}, weight), expected) <= TOLERANCE


def test_a_replacement_is_the_value() -> None:
    weight, value = rand(16), rand(16, seed=3)
    assert torch.allclose(delta(ALGORITHMS["replace"], {"value": value}, {}, weight), (value - weight).float())
    assert ALGORITHMS["replace"].reads({"value": (16,)}) == "rows"


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


# -- what belongs together ---------------------------------------------------------------------------------------------------

UNFIT: list[tuple[str, dict[str, tuple[int, ...]], str]] = [
    ("lora", {"up": (8, 4), "down": (3, 6)}, "different ranks"),
    ("lora", {"up": (8, 4), "down": (4, 6), "mid": (4, 3, 3, 3)}, "different ranks"),
    ("lora", {"up": (8, 4), "down": (4, 6, 3, 3), "mid": (4, 4, 3, 3)}, "has the kernel"),
    ("lora", {"up": (8, 4), "down": (4,)}, "no matrices"),
    ("lora", {"up": (8, 4), "down": (4, 6), "sparse_indices": (2, 9), "sparse_values": (8,)}, "coordinates"),
    ("lora", {"up": (8, 4), "down": (4, 6), "dora_scale": (7, 1)}, "dora_scale [7, 1] is not one of the rows"),
    ("lora", {"up": (8, 4), "down": (4, 6), "dora_scale": (1, 8)}, "dora_scale [1, 8] is not one of the columns"),
    ("lora", {"up": (8, 4), "down": (4, 6), "magnitude": (6,)}, "magnitude [6] is not one of the rows"),
    ("lora", {"up": (8, 4), "down": (4, 6), "magnitude": (8,), "dora_scale": (8, 1)}, "two magnitudes"),
    ("loha", {"w1_a": (8, 4), "w1_b": (4, 6), "w2_a": (8, 3), "w2_b": (4, 6)}, "different ranks"),
    ("loha", {"w1_a": (8, 4), "w1_b": (4, 6), "w2_a": (8, 4), "w2_b": (4, 5)}, "w2 makes [8, 5]"),
    ("loha", {"t1": (4, 4, 3, 3), "t2": (4, 4, 3, 3), "w1_a": (8, 4), "w1_b": (4, 6), "w2_a": (4, 8), "w2_b": (4, 6)}, "different ranks"),
    ("lokr", {"w1": (2, 2), "w1_a": (2, 1), "w1_b": (1, 2), "w2": (4, 3)}, "both whole and as a product"),
    ("lokr", {"w1": (2, 2), "w2": (4, 3), "t2": (1, 1, 3, 3)}, "both whole and as a product"),
    ("lokr", {"w1": (2, 2), "w2_a": (4, 3), "w2_b": (2, 3)}, "different ranks"),
    ("lokr", {"w1": (4,), "w2": (4, 3)}, "no matrix"),
    ("oft", {"blocks": (3, 4, 5)}, "no squares"),
    ("oft", {"blocks": (3, 4, 4), "rescale": (11, 1)}, "rescale [11, 1]"),
    ("oft", {"packed": (3, 5)}, "no upper triangle"),
    ("boft", {"blocks": (2, 3, 5, 5)}, "no butterfly"),
    ("boft", {"butterfly": (1, 3, 4)}, "no squares"),
    ("boft", {"butterfly": (1, 3, 4, 4), "blocks": (1, 3, 4, 4)}, "two libraries"),
    ("ia3", {"w": (3, 4)}, "vector"),
    ("ia3", {"w": (3,), "l": (3, 1)}, "two scales"),
    ("glora", {"a1": (6, 4), "a2": (4, 5), "b1": (8, 4), "b2": (4, 6)}, "no change of one input"),
    ("glora", {"a1": (6, 4), "a2": (4, 6), "b1": (8, 4), "b2": (3, 6)}, "different ranks"),
    ("glora", {"a1": (6, 4), "a2": (4, 6), "b1": (8, 4), "b2": (4, 7)}, "different inputs"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shapes", "text"), UNFIT)
def test_factors_that_do_not_go_together(name: str, shapes: dict[str, tuple[int, ...]], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        ALGORITHMS[name].shape(shapes)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "algorithm", [a for a in ALGORITHMS.values() if len(set(a.roles.values())) > 1 and a.name not in ("oft", "ia3", "boft")]
)
def test_a_missing_factor_is_a_key_error(algorithm: Algorithm) -> None:
    """The opener says which: half a module is never applied."""
    with pytest.raises(KeyError):
        algorithm.shape({})


@pytest.mark.parametrize(
    ("name", "shapes", "settings", "weight", "suits"),
    [
        ("ia3", {"w": (8,)}, {"on_input": 0.0}, (8, 6), True),
        ("ia3", {"w": (8,)}, {"on_input": 1.0}, (8, 6), False),
        ("ia3", {"l": (1, 6)}, {}, (8, 6), True),
        ("ia3", {"l": (1, 8, 1, 1)}, {}, (8, 6, 3, 3), True),
        ("ia3", {"l": (1, 7, 1, 1)}, {}, (8, 6, 3, 3), False),
        ("ia3", {"l": (8, 1)}, {}, (8,), True),
        ("ia3", {"l": (1, 8)}, {"on_input": 1.0}, (8,), False),
        ("oft", {"packed": (1, 6)}, {}, (8, 12), True),
        ("oft", {"packed": (1, 6)}, {}, (8, 10), False),
        ("lora", {"up": (8, 4), "down": (4, 6)}, {}, (8, 6), True),
    ],
)
def test_whether_factors_suit_a_weight(
    name: str, shapes: dict[str, tuple[int, ...]], settings: dict[str, float], weight: tuple[int, ...], suits: bool
) -> None:
    assert ALGORITHMS[name].suits(shapes, settings, weight) is suits


def test_coordinates_outside_of_the_weight_are_refused() -> None:
    factors = {"up": rand(8, 2), "down": rand(2, 6), "sparse_values": rand(1)}
    for outside in ([[8], [0]], [[-1], [0]], [[0], [6]]):
        with pytest.raises(IncompatibleError, match="outside of the weight"):
            on_rows(ALGORITHMS["lora"], {**factors, "sparse_indices": torch.tensor(outside)}, {"scale": 1.0}, rand(8, 6), 0, 4)


def test_scales() -> None:
    lora, lokr, loha = ALGORITHMS["lora"], ALGORITHMS["lokr"], ALGORITHMS["loha"]
    shapes = {"up": (8, 4), "down": (4, 6)}
    assert lora.rank(shapes) == 4
    assert [lora.scale(alpha, 4, shapes) for alpha in (None, 0.0, 2.0, 16.0)] == [1.0, 1.0, 0.5, 4.0]
    for alpha in (math.inf, math.nan):
        with pytest.raises(ValueError, match="alpha"):
            lora.scale(alpha, 4, shapes)
    full = {"w1": (2, 2), "w2": (4, 3)}
    assert lokr.rank(full) is None
    assert [lokr.scale(alpha, None, full) for alpha in (math.inf, 10000.0, 9984.0, 9999999999.0, 0.0, None)] == [1.0] * 6
    with pytest.raises(ValueError, match="alpha"):
        lokr.scale(math.nan, None, full)
    assert lokr.rank({"w1": (2, 2), "w2_a": (4, 3), "w2_b": (3, 5)}) == 3
    assert lokr.rank({"w1_a": (2, 1), "w1_b": (1, 2), "w2_a": (4, 3), "w2_b": (3, 5)}) == 1
    assert loha.rank({"w1_a": (8, 4), "w1_b": (4, 6), "w2_a": (8, 4), "w2_b": (4, 6)}) == 4


def test_settings_of_a_whole_lokr_are_finite_and_a_difference_beside_a_lora_is_not_scaled() -> None:
    whole = default_settings(Draft("module", "lokr", {"w1": (2, 2), "w2": (4, 3)}, {"alpha": math.inf}))
    assert whole == {"scale": 1.0}
    lora = Draft("module", "lora", {"up": (8, 4), "down": (4, 6)}, {"alpha": 2.0})
    assert default_settings(Draft("module", "diff", {"diff": (8,)}, {}, lora))["scale"] == 1.0
    assert default_settings(Draft("module", "lora", {"up": (8,)}, {}, lora))["scale"] == 0.5


def test_algorithms_are_told_by_names_and_shapes() -> None:
    def name(bias: bool = False, **parts: tuple[int, ...]) -> str | None:
        found = find_algorithm({last.replace("__", "."): shape for last, shape in parts.items()}, bias=bias)
        return found.name if found else None

    assert name(oft_blocks=(3, 4, 4), alpha=()) == "oft"
    assert name(oft_blocks=(2, 3, 4, 4), alpha=()) == "boft"
    assert name(oft_blocks=(2, 3, 4, 4), rescale=(12, 1), alpha=()) == "boft"
    assert name(weight=(12,), on_input=()) == "ia3"
    assert name(weight=(12,)) is None
    assert name(lora_A__weight=(4, 6), hada_w1_a=(8, 4)) is None
    assert name(lora_up__weight=(8, 4), lora_down__weight=(4, 6), dora_scale=(8, 1), alpha=()) == "lora"
    assert name(lora_B__bias=(8,), bias=True) == "lora"
    assert name(lora_B__bias=(8,)) is None
    assert name(diff_b=(8,), bias=True) == "diff"


def test_every_written_name_is_read_as_its_role() -> None:
    for algorithm in ALGORITHMS.values():
        for words in algorithm.stored.values():
            assert all(algorithm.roles[last] == role for role, last in words.items()), algorithm.name
            assert len(set(words.values())) == len(words)


def test_a_row_may_be_cut_where_the_algorithm_says_so() -> None:
    """Rows of the factors of `by_rows` are a module for these rows of the weight."""
    weight = rand(12, 8)
    modules = {
        "lora": {"up": rand(12, 2), "down": rand(2, 8), "dora_scale": rand(12, 1).abs()},
        "loha": {"w1_a": rand(12, 2), "w1_b": rand(2, 8), "w2_a": rand(12, 2, seed=1), "w2_b": rand(2, 8, seed=1)},
        "diff": {"diff": rand(12, 8, seed=2)},
        "replace": {"value": rand(12, 8, seed=3)},
        "glora": {"a1": rand(8, 2), "a2": rand(2, 8), "b1": rand(12, 2), "b2": rand(2, 8, seed=4)},
        "ia3": {"w": rand(12)},
        "boft": {"butterfly": rand(1, 2, 4, 4), "scales": rand(12, 1)},
        "oft": {"packed": rand(2, 6)},
    }
    settings = {"scale": 0.5, "on_input": 0.0}
    for name, factors in modules.items():
        algorithm = ALGORITHMS[name]
        roles = algorithm.by_rows(shapes_of(factors), settings)
        if name == "oft":
            settings = {"neumann_terms": 5.0}
        assert roles is not None, name
        whole = delta(algorithm, factors, settings, weight)
        cut = {role: factor[3:7] if role in roles else factor for role, factor in factors.items()}
        assert relative(delta(algorithm, cut, settings, weight[3:7]), whole[3:7]) <= TOLERANCE, name
    lokr = ALGORITHMS["lokr"]
    assert lokr.by_rows({"w1": (3, 2), "w2": (4, 4)}, {}) is None
    assert ALGORITHMS["loha"].by_rows({"t1": (2, 2, 3, 3)}, {}) is None
