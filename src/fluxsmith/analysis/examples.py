"""Examples to measure a model on: drawn from the pocket world, or read from a file of latents and text embeddings."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

from fluxsmith.errors import FileError, UsageError
from fluxsmith.models.statistics import Examples

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["examples_from_file", "pocket_examples"]

_BATCH = 16
_NEEDED = ("latents", "prompt_embeds", "pooled", "timesteps")
_OPTIONAL = ("noise", "guidance", "image_ids")


def pocket_examples(name: str, count: int, *, seed: int = 0, guidance: bool = False) -> list[Examples]:
    """Training examples of the pocket checkpoint `name`: captions by the annotator whose style it learned.

    `guidance` tells a model that embeds it the value 1, which asks for the data as they are.
    Raises UsageError where there is no such checkpoint.
    """
    import torch

    from fluxsmith.pocket.batches import draw_batch
    from fluxsmith.pocket.checkpoints import CHECKPOINTS, LEARNED
    from fluxsmith.pocket.digits import GRID
    from fluxsmith.pocket.forward import image_ids
    from fluxsmith.pocket.streams import stream

    if name not in CHECKPOINTS:
        raise UsageError("usage.unknown-data", f"the pocket world has no data of `{name}`", facts={"known": ", ".join(CHECKPOINTS)})
    known = (LEARNED[name],) if name in LEARNED else ()
    found: list[Examples] = []
    for number, start in enumerate(range(0, count, _BATCH)):
        batch = draw_batch(min(_BATCH, count - start), known, stream(seed, f"statistics/{name}/{number}"))
        embeds, pooled, mask = batch.conditioning
        told = torch.ones(len(batch.times)) if guidance else None
        target = batch.noise - batch.clean
        found.append(Examples(batch.noisy, batch.times, target, embeds, pooled, image_ids(GRID), told, mask))
    return found


def examples_from_file(path: str, *, seed: int = 0) -> list[Examples]:
    """Examples of a safetensors file, one by one.

    It has `latents` [N, S, C] (clean, packed in 2x2 patches and scaled as the transformer takes them), `prompt_embeds`
    [N, T, ctx], `pooled` [N, vec] and `timesteps` [N] in 0..1; and may have `noise` as `latents` (else it is drawn from
    `seed`), `guidance` [N], and `image_ids` [S, 3] (else S is taken as a square).
    Raises FileError naming the tensor that is missing or misshapen.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise FileError("data.unreadable", f"{path} cannot be read: {error}", fix="give a safetensors file of examples") from None
    latents = _checked(path, tensors)
    noise = tensors.get("noise")
    if noise is None:
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    times = tensors["timesteps"]
    noisy = torch.lerp(latents, noise, times[:, None, None])
    ids = tensors.get("image_ids")
    whole = Examples(
        noisy, times, noise - latents, tensors["prompt_embeds"], tensors["pooled"],
        _square_ids(path, latents.shape[1]) if ids is None else ids, tensors.get("guidance"),
    )  # fmt: skip
    return [whole[i] for i in range(len(whole))]


def _checked(path: str, tensors: dict[str, Tensor]) -> Tensor:
    """The latents of a file whose tensors fit together."""
    facts = {"file": path, "needed": ", ".join(_NEEDED), "may have": ", ".join(_OPTIONAL)}
    for name in _NEEDED:
        if name not in tensors:
            raise FileError("data.missing-tensor", f"{path} has no `{name}`", facts=facts, fix="see fluxsmith statistics --help")
    unknown = sorted(set(tensors) - {*_NEEDED, *_OPTIONAL})
    if unknown:
        raise FileError("data.unknown-tensor", f"{path} has `{unknown[0]}`, which means nothing here", facts=facts, fix="leave it out")
    latents = tensors["latents"]
    dims = {"latents": 3, "prompt_embeds": 3, "pooled": 2, "timesteps": 1, "noise": 3, "guidance": 1, "image_ids": 2}
    for name, tensor in tensors.items():
        alone = name == "image_ids"
        if tensor.dim() != dims[name] or (not alone and len(tensor) != len(latents)) or not bool(tensor.isfinite().all()):
            raise FileError(
                "data.wrong-shape",
                f"`{name}` of {path} is {list(tensor.shape)}, or has values that are not finite",
                facts={**facts, "expected": f"{dims[name]} dims{'' if alone else f', the first {len(latents)}'}, all finite"},
                fix="see fluxsmith statistics --help",
            )
    return latents


def _square_ids(path: str, tokens: int) -> Tensor:
    from fluxsmith.pocket.forward import image_ids

    side = isqrt(tokens)
    if side * side != tokens:
        raise FileError(
            "data.missing-tensor", f"the {tokens} tokens of {path} are no square", facts={"file": path}, fix="add `image_ids` [S, 3]"
        )
    return image_ids((side, side))
