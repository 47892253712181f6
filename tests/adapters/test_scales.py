"""A scale that goes into factors leaves the delta as it is, for every algorithm that has one."""

import pytest
import torch
from torch import Tensor

from fluxsmith.adapters.module import Span, Target
from fluxsmith.adapters.tensors import ModuleTensors, delta_of
from fluxsmith.adapters.writing.scales import with_scale

TARGET = Target("x.weight", "transformer", "bfl", "x.weight", (6, 8), (Span(0, 0, 6),))


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


FACTORS: dict[str, tuple[str, dict[str, Tensor]]] = {
    "lora": ("lora", {"up": draw(6, 2), "down": draw(2, 8)}),
    "lora with a sparse rest": (
        "lora",
        {
            "up": draw(6, 2), "down": draw(2, 8), "sparse_indices": torch.tensor([[0, 3], [1, 7]]), "sparse_values": draw(2),
            "sparse_size": torch.tensor([6, 8]),
        },
    ),
    "dora": ("lora", {"up": draw(6, 2), "down": draw(2, 8), "dora_scale": draw(6, 1).abs()}),
    "loha": ("loha", {"w1_a": draw(6, 2), "w1_b": draw(2, 8), "w2_a": draw(6, 3), "w2_b": draw(3, 8)}),
    "lokr": ("lokr", {"w1": draw(2, 4), "w2_a": draw(3, 2), "w2_b": draw(2, 2)}),
    "glora": ("glora", {"a1": draw(8, 2), "a2": draw(2, 8), "b1": draw(6, 2), "b2": draw(2, 8)}),
    "diff": ("diff", {"diff": draw(6, 8)}),
}  # fmt: skip


@pytest.mark.parametrize("name", FACTORS)
def test_the_delta_stays(name: str) -> None:
    algorithm, factors = FACTORS[name]
    module = ModuleTensors(TARGET, algorithm, factors, {"scale": 0.7})
    weight = draw(6, 8)
    torch.testing.assert_close(delta_of(with_scale(module, 2.0), weight), delta_of(module, weight), rtol=1e-5, atol=1e-6)
    assert with_scale(module, 2.0).settings["scale"] == 2.0
