"""Files of adapters in every dialect, with the deltas that they mean: real producers where they can be installed, else
writers that are faithful to their keys.

Every factor is random, every alpha differs from its rank, ranks differ from module to module. What is expected is worked
out without fluxsmith: by a forward pass of the producer's own modules, or by a few lines of torch here.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fluxsmith.adapters import Adapter
from fluxsmith.adapters.algorithms import ALGORITHMS, Rows
from fluxsmith.adapters.reading.opening import open_adapter
from fluxsmith.io.opening import open_checkpoint
from fluxsmith.layouts import Bound

__all__ = [
    "DEPTHS",
    "H",
    "Container",
    "M",
    "Numbers",
    "Split",
    "agree",
    "bfl_tree",
    "delta_of",
    "deltas_of",
    "factors",
    "lycoris",
    "opened",
    "saved",
    "split_stems",
]

H, M, DEPTHS = 48, 192, (2, 3)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class Container:
    """An adapter's tensors, and what they add to the canonical tensors of the model."""

    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    deltas: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    metadata: dict[str, str] = field(default_factory=dict[str, str])

    def add(self, tensor: str, delta: Tensor, shape: tuple[int, ...], at: int = 0) -> None:
        """Add a delta to rows [at, at + rows) of a canonical tensor of `shape`."""
        whole = self.deltas.setdefault(tensor, torch.zeros(shape))
        whole[at : at + len(delta)] += delta.float()


def opened(container: Container, folder: Path, base: Bound | None) -> Adapter:
    """The container as an opened adapter, of whose keys each is in a module or has a reason."""
    adapter = open_adapter(open_checkpoint(saved(container, folder / "adapter.safetensors")), base=base)
    used = {key for module in adapter.modules for key in module.sources}
    assert used | set(adapter.dropped) == set(container.tensors)
    assert not used & set(adapter.dropped)
    return adapter


def saved(container: Container, file: Path) -> Path:
    """The container as a file."""
    save_file({key: tensor.detach().contiguous().clone() for key, tensor in container.tensors.items()}, file, container.metadata or None)
    return file


# -- what an opened adapter means ---------------------------------------------------------------------------------------


def deltas_of(adapter: Adapter, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The canonical deltas of an opened adapter: every module's delta on all rows, put where its target says."""
    found: dict[str, Tensor] = {}
    for module in adapter.modules:
        delta, target = delta_of(adapter, module, weights), module.target
        base = weights[target.tensor]
        shape = adapter.widens.get(target.tensor, tuple(base.shape))
        whole = found.setdefault(target.tensor, torch.zeros(shape))
        for span in target.spans:
            whole[span.start : span.start + span.rows] += delta[span.at : span.at + span.rows].reshape(span.rows, *shape[1:])
    return found


def delta_of(adapter: Adapter, module: Any, weights: Mapping[str, Tensor]) -> Tensor:
    """One module's delta, in the layout in which it was trained."""
    algorithm, target = ALGORITHMS[module.algorithm], module.target
    file = Path(adapter.checkpoint.files[0].path)
    tensors, keys = _tensors(file, file.stat().st_mtime_ns), {adapter.checkpoint.tensors[key]: key for key in module.sources}
    factors = {role: tensors[keys[view]].float() for role, view in module.factors.items()}
    whole = weights[target.tensor].float()
    stored = torch.cat([whole[span.start : span.start + span.rows] for span in target.spans]).reshape(-1, *whole.shape[1:])
    if stored.shape != torch.Size(target.shape):  # widened with zeros
        stored = torch.cat([stored, torch.zeros(stored.shape[0], target.shape[1] - stored.shape[1])], 1)
    reads = algorithm.reads({role: view.shape for role, view in module.factors.items()})
    rows = Rows(0, target.shape[0], target.shape)
    return algorithm.delta(factors, module.settings, rows, None if reads == "nothing" else stored)


@lru_cache(maxsize=2)
def _tensors(file: Path, changed: int) -> dict[str, Tensor]:
    return load_file(file)


def agree(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 2e-6) -> None:
    """Both change the same tensors, each within `tolerance` of the expected delta's largest element."""
    changed = {name for name, delta in expected.items() if delta.any()}
    assert {name for name, delta in found.items() if delta.any()} == changed
    for name in changed:
        worst = float((found[name] - expected[name]).abs().max() / expected[name].abs().max())
        assert worst <= tolerance, (name, worst)


# -- random numbers -----------------------------------------------------------------------------------------------------


@dataclass
class Numbers:
    """Random factors; ranks 2 to 6 and alphas of every type that trainers write, never equal to the rank."""

    generator: torch.Generator
    count: int = 0

    @classmethod
    def seeded(cls, seed: int) -> "Numbers":
        return cls(torch.Generator().manual_seed(seed))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def rank(self) -> int:
        self.count += 1
        return 2 + self.count % 5

    def alpha(self, rank: int) -> Tensor:
        """A number that is not the rank: int64, float16, bfloat16 or float32, of shape [] or [1]."""
        value = 1.5 + self.count % 7 + 4 * (rank in (2, 5))
        dtype = (torch.int64, torch.float16, torch.bfloat16, torch.float32)[self.count % 4]
        alpha = torch.tensor(value).to(dtype)
        if float(alpha) == rank:
            alpha = (alpha + 1).to(dtype)
        return alpha.reshape(1) if self.count % 3 == 0 else alpha


def factors(numbers: Numbers, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Down [r, in] and up [out, r] for a matrix of `shape`."""
    rank = numbers.rank()
    return numbers.normal(rank, shape[1]), numbers.normal(shape[0], rank)


# -- names --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Where a linear layer of diffusers' FLUX.1 lies in Black Forest Labs' file: `rows` from `at` on of `stem`, or all of
    it with its halves exchanged."""

    stem: str
    at: int
    shape: tuple[int, int]
    swapped: bool = False


def split_stems(depths: tuple[int, int] = DEPTHS) -> dict[str, Split]:
    """diffusers' name -> place, as formats.md 1.2 has it, for the tiny model."""
    found: dict[str, Split] = {}

    def put(name: str, stem: str, rows: int, cols: int, at: int = 0, *, swapped: bool = False) -> None:
        found[name] = Split(stem, at, (rows, cols), swapped)

    for i in range(depths[0]):
        d, b = f"transformer_blocks.{i}", f"double_blocks.{i}"
        for stream, qkv, out, ff, mod in (
            ("img", "to_q to_k to_v", "to_out.0", "ff", "norm1"),
            ("txt", "add_q_proj add_k_proj add_v_proj", "to_add_out", "ff_context", "norm1_context"),
        ):
            for part, name in enumerate(qkv.split()):
                put(f"{d}.attn.{name}", f"{b}.{stream}_attn.qkv", H, H, part * H)
            put(f"{d}.attn.{out}", f"{b}.{stream}_attn.proj", H, H)
            put(f"{d}.{ff}.net.0.proj", f"{b}.{stream}_mlp.0", M, H)
            put(f"{d}.{ff}.net.2", f"{b}.{stream}_mlp.2", H, M)
            put(f"{d}.{mod}.linear", f"{b}.{stream}_mod.lin", 6 * H, H)
    for i in range(depths[1]):
        d, b = f"single_transformer_blocks.{i}", f"single_blocks.{i}"
        for part, name in enumerate(("to_q", "to_k", "to_v")):
            put(f"{d}.attn.{name}", f"{b}.linear1", H, H, part * H)
        put(f"{d}.proj_mlp", f"{b}.linear1", M, H, 3 * H)
        put(f"{d}.proj_out", f"{b}.linear2", H, H + M)
        put(f"{d}.norm.linear", f"{b}.modulation.lin", 3 * H, H)
    for kind, stem, cols in (("timestep", "time_in", 256), ("guidance", "guidance_in", 256), ("text", "vector_in", 24)):
        put(f"time_text_embed.{kind}_embedder.linear_1", f"{stem}.in_layer", H, cols)
        put(f"time_text_embed.{kind}_embedder.linear_2", f"{stem}.out_layer", H, H)
    put("context_embedder", "txt_in", H, 32)
    put("x_embedder", "img_in", H, 16)
    put("norm_out.linear", "final_layer.adaLN_modulation.1", 2 * H, H, swapped=True)
    put("proj_out", "final_layer.linear", 16, H)
    return found


# -- the producer of kohya's files ----------------------------------------------------------------------------------------


class DoubleStreamBlock(nn.Module):
    """LyCORIS looks for the class's name."""


class SingleStreamBlock(nn.Module):
    """LyCORIS looks for the class's name."""


def bfl_tree(weights: Mapping[str, Tensor]) -> nn.Module:
    """Black Forest Labs' module tree of a checkpoint's linear layers, with its weights and biases."""
    root = nn.Module()
    for name, weight in weights.items():
        if name.endswith(".weight") and weight.ndim == 2:
            path = name.removesuffix(".weight").split(".")
            bias = weights.get(f"{'.'.join(path)}.bias")
            leaf = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            leaf.weight.data = weight.float()
            if bias is not None:
                leaf.bias.data = bias.float()
            _put(root, path, leaf)
    return root


def _put(root: nn.Module, path: list[str], leaf: nn.Module) -> None:
    classes = {"double_blocks": DoubleStreamBlock, "single_blocks": SingleStreamBlock}
    for depth, word in enumerate(path[:-1]):
        child = getattr(root, word, None)
        if child is None:
            child = classes.get(path[0], nn.Module)() if depth == 1 else nn.Module()
            root.add_module(word, child)
        root = child
    root.add_module(path[-1], leaf)


def lycoris(weights: Mapping[str, Tensor], algo: str, seed: int, **options: Any) -> Container:
    """What LyCORIS' kohya network saves for the tiny model, every parameter random; deltas by forward passes of its modules.

    Ranks and alphas differ: modules are taken in turns from three networks.
    """
    from lycoris import kohya

    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    generator = torch.Generator().manual_seed(seed)
    tree = bfl_tree(weights)
    stems = {name.replace(".", "_"): name for name, module in tree.named_modules() if isinstance(module, nn.Linear)}
    networks = [
        kohya.create_network(1.0, rank, alpha, None, [], tree, warn_on_unmatched=False, algo=algo, **options)
        for rank, alpha in ((4, 2.0), (3, 5.0), (6, 1.5))
    ]
    container = Container()
    for index, modules in enumerate(zip(*(network.loras for network in networks), strict=True)):
        module = modules[index % len(modules)]
        if algo == "full":  # until then its weight is the difference, and what it saves is not
            module.apply_to()
        for parameter in module.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        container.tensors |= {f"{module.lora_name}.{key}": tensor for key, tensor in module.state_dict().items()}
        stem = stems[module.lora_name.removeprefix("lora_unet_")]
        weight, bias = weights[f"{stem}.weight"], weights[f"{stem}.bias"]
        with torch.no_grad():
            zero = module(torch.zeros(1, weight.shape[1]))
            container.add(f"{stem}.weight", (module(torch.eye(weight.shape[1])) - zero).T - weight.float(), tuple(weight.shape))
            if (zero[0] - bias.float()).abs().max() > 1e-6:
                container.add(f"{stem}.bias", zero[0] - bias.float(), tuple(bias.shape))
    return container
