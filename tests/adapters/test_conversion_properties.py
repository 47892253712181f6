"""Converting by property: for any adapter and any way through the dialects, the delta stays what it was."""

# pyright: reportMissingTypeStubs=false
import tempfile
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters.containers import Container, Split, agree, opened, split_stems
from fluxsmith.adapters.converting.files import convert
from fluxsmith.adapters.dialects import DIALECTS
from fluxsmith.adapters.reading.opening import open_adapter
from fluxsmith.io.references import open_reference
from fluxsmith.layouts import Bound

Weights = dict[str, Tensor]

#: Dialects of both layouts, of all ways to write a scale, split and fused; xlabs and PEFT's folder have tests of their own.
HOPS = ("kohya", "onetrainer", "onetrainer-bfl", "comfy", "original", "diffusers", "ai-toolkit", "lycoris", "peft")
RELAXED = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
STEMS = split_stems()

modules = st.fixed_dictionaries(
    {
        "rank": st.integers(1, 5),
        "alpha": st.sampled_from([0.25, 1.0, 2.7, 8.0]),
        "shared": st.booleans(),
        "dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    }
)
adapters = st.dictionaries(st.sampled_from(sorted(STEMS)), modules, min_size=1, max_size=9)


def made(chosen: dict[str, dict[str, object]], algorithm: str, seed: int) -> Container:
    """An adapter of diffusers' split modules, in LyCORIS' names; `shared` modules of one width have one `down`."""
    generator = torch.Generator().manual_seed(seed)
    container, downs = Container(), dict[tuple[int, int, object], Tensor]()

    def normal(*shape: int, dtype: object) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)  # pyright: ignore[reportArgumentType, reportCallIssue]

    for name, choice in chosen.items():
        place, rank, dtype = STEMS[name], int(str(choice["rank"])), choice["dtype"]
        rows, cols = place.shape
        down = normal(rank, cols, dtype=dtype)
        if choice["shared"]:
            down = downs.setdefault((rank, cols, dtype), down)
        key, alpha = f"lycoris_{name.replace('.', '_')}", torch.tensor(float(str(choice["alpha"])))
        up = normal(rows, rank, dtype=dtype)
        delta = up.float() @ down.float()
        found = {"lora_down.weight": down, "lora_up.weight": up}
        if algorithm == "loha":
            second, other = normal(rows, rank, dtype=dtype), normal(rank, cols, dtype=dtype)
            found = {"hada_w1_a": up, "hada_w1_b": down, "hada_w2_a": second, "hada_w2_b": other}
            delta *= second.float() @ other.float()
        scale = float(alpha) / rank
        if algorithm == "full":
            found, delta, scale = {"diff": delta.to(dtype)}, delta.to(dtype).float(), 1.0  # pyright: ignore[reportArgumentType, reportCallIssue]
        container.tensors |= {f"{key}.{role}": tensor for role, tensor in found.items()}
        if algorithm != "full":
            container.tensors[f"{key}.alpha"] = alpha
        put(container, place, delta * scale)
    return container


def put(container: Container, place: Split, delta: Tensor) -> None:
    """As formats.md 1.2 has it: parts of fused matrices below each other, the last modulation's halves exchanged."""
    rows = {"linear1": 336, "qkv": 144}.get(place.stem.rpartition(".")[2], place.shape[0])
    half = len(delta) // 2
    container.add(
        f"{place.stem}.weight", torch.cat([delta[half:], delta[:half]]) if place.swapped else delta, (rows, place.shape[1]), place.at
    )


@RELAXED
@given(chosen=adapters, way=st.lists(st.sampled_from(HOPS), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_lora_keeps_its_delta(chosen: dict[str, dict[str, object]], way: list[str], seed: int, base: Bound, weights: Weights) -> None:
    follow(made(chosen, "lora", seed), way, base)


@RELAXED
@given(
    chosen=adapters,
    way=st.lists(st.sampled_from(("kohya", "comfy", "lycoris", "original")), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_loha_keeps_its_delta(chosen: dict[str, dict[str, object]], way: list[str], seed: int, base: Bound, weights: Weights) -> None:
    follow(made(chosen, "loha", seed), way, base)


@RELAXED
@given(
    chosen=adapters,
    way=st.lists(st.sampled_from(("kohya", "comfy", "lycoris", "original")), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_differences_keep_their_values(
    chosen: dict[str, dict[str, object]], way: list[str], seed: int, base: Bound, weights: Weights
) -> None:
    follow(made(chosen, "full", seed), way, base, tolerance=0)


def follow(container: Container, way: list[str], base: Bound, tolerance: float = 1e-6) -> None:
    """Convert from dialect to dialect; at every step the delta is that of the start, to 1e-6 of its largest element."""
    from fluxsmith.adapters.tensors import delta_of, read_module

    with tempfile.TemporaryDirectory() as folder:
        adapter = opened(container, Path(folder), base)
        for step, dialect in enumerate(way):
            target = Path(folder) / f"{step}{'' if dialect == 'peft' else '.safetensors'}"
            outcome = convert(adapter, target, DIALECTS[dialect])
            assert set(outcome.ways) <= {"same", "cut", "joined"}
            adapter = open_adapter(open_reference(str(target), download=False), base=base)
            assert not adapter.dropped
            found: dict[str, Tensor] = {}
            for module in adapter.modules:
                whole = found.setdefault(module.target.tensor, torch.zeros(base.spec[module.target.tensor].shape))
                delta = delta_of(read_module(module))
                for span in module.target.spans:
                    whole[span.start : span.start + span.rows] += delta[span.at : span.at + span.rows]
            agree(found, container.deltas, tolerance)
