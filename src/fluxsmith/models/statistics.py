"""What a model does on examples, as numbers per weight: for Fisher-weighted averaging and RegMean.

Tensors have canonical names and are made one after another, so that a file of many gigabytes can be written while a
few are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fluxsmith.layouts.binding import solve_dims
from fluxsmith.layouts.flux1 import FLUX1

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel
    from torch import Tensor

    from fluxsmith.layouts import Canonical

__all__ = ["Examples", "Shapes", "fisher_information", "fisher_shapes", "gram_shapes", "input_grams"]

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Examples:
    """A batch of B examples.

    `latents` [B, S, C] are x_t at `times` [B] in 0..1, `target` [B, S, C] the velocity that they should give,
    `prompt_embeds` [B, T, ctx] and `pooled` [B, vec] the text, `image_ids` [S, 3] the places of the tokens, `guidance`
    [B] for models that embed it, `mask` [B, T] true where a text token is real (None: everywhere). All float32.
    """

    latents: Tensor
    times: Tensor
    target: Tensor
    prompt_embeds: Tensor
    pooled: Tensor
    image_ids: Tensor
    guidance: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, index: int) -> Examples:
        """One example as a batch of one."""
        part = slice(index, index + 1)
        guidance, mask = (None if tensor is None else tensor[part] for tensor in (self.guidance, self.mask))
        return Examples(
            self.latents[part], self.times[part], self.target[part], self.prompt_embeds[part], self.pooled[part],
            self.image_ids, guidance, mask,
        )  # fmt: skip

    def velocity(self, transformer: FluxTransformer2DModel) -> Tensor:
        """What a transformer predicts for `target`."""
        import torch

        attention: dict[str, Any] = {}
        if self.mask is not None:
            image = self.mask.new_ones(self.latents.shape[:2])
            attention = {"attention_mask": torch.cat([self.mask, image], dim=1)[:, None, None, :]}
        return transformer(
            hidden_states=self.latents, encoder_hidden_states=self.prompt_embeds, pooled_projections=self.pooled,
            timestep=self.times, guidance=self.guidance, img_ids=self.image_ids,
            txt_ids=self.latents.new_zeros(self.prompt_embeds.shape[1], 3), joint_attention_kwargs=attention, return_dict=False,
        )[0]  # fmt: skip


def _canonical(transformer: FluxTransformer2DModel) -> list[Canonical]:
    """Every canonical tensor of a stock transformer."""
    shapes = {name: tuple(tensor.shape) for name, tensor in transformer.named_parameters()}
    return FLUX1.expand(solve_dims(FLUX1, "diffusers", shapes, "the transformer"), ["transformer"])


def _layers(transformer: FluxTransformer2DModel) -> dict[str, Any]:
    """The linear layer behind every canonical weight. The pieces of a fused one have the same inputs: the first stands
    for all."""
    weights = [tensor for tensor in _canonical(transformer) if len(tensor.shape) == 2]
    stems = {tensor.name: tensor.pieces["diffusers"][0].name.removesuffix(".weight") for tensor in weights}
    return {name: transformer.get_submodule(stem) for name, stem in stems.items()}


def gram_shapes(transformer: FluxTransformer2DModel) -> Shapes:
    """Names and shapes of what `input_grams` gives."""
    return {name: (layer.in_features,) * 2 for name, layer in _layers(transformer).items()}


def input_grams(transformer: FluxTransformer2DModel, batches: Sequence[Examples], *, limit: int = 4 << 30) -> Iterator[tuple[str, Tensor]]:
    """X^T X / n [in, in] of every linear layer by canonical name, X [n, in] all that enters it on the examples.

    One pass over the examples for every `limit` bytes of matrices (those of a 12 B model take about 60 GB). Padded text
    tokens are counted as others are.
    """
    import torch

    waiting = list(_layers(transformer).items())
    while waiting:
        taken, waiting = _first_few(waiting, limit)
        sums = {name: torch.zeros(layer.in_features, layer.in_features) for name, layer in taken}
        counts = dict.fromkeys(sums, 0)
        handles = [layer.register_forward_pre_hook(_adder(name, sums, counts)) for name, layer in taken]
        try:
            with torch.inference_mode():
                for batch in batches:
                    batch.velocity(transformer)
        finally:
            for handle in handles:
                handle.remove()
        for name in list(sums):
            yield name, sums.pop(name).div_(max(counts[name], 1))


def _first_few(layers: Sequence[tuple[str, Any]], limit: int) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """As many layers as have matrices within a limit of bytes, at least one, and the rest."""
    used = count = 0
    while count < len(layers) and (not count or used + 4 * layers[count][1].in_features ** 2 <= limit):
        used += 4 * layers[count][1].in_features ** 2
        count += 1
    return list(layers[:count]), list(layers[count:])


def _adder(name: str, sums: dict[str, Tensor], counts: dict[str, int]) -> Callable[[Any, tuple[Any, ...]], None]:
    """A hook that adds what enters a layer to its Gram matrix."""

    def add(_: Any, inputs: tuple[Any, ...]) -> None:
        rows = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
        sums[name].addmm_(rows.mT, rows)
        counts[name] += len(rows)

    return add


def fisher_shapes(transformer: FluxTransformer2DModel) -> Shapes:
    """Names and shapes of what `fisher_information` gives."""
    return {tensor.name: tensor.shape for tensor in _canonical(transformer)}


def fisher_information(transformer: FluxTransformer2DModel, batches: Iterable[Examples]) -> Iterator[tuple[str, Tensor]]:
    """The mean over examples of the squared gradient of the flow-matching loss, of every tensor by canonical name.

    This is the diagonal of the empirical Fisher information, of a Gaussian around the predicted velocity. One example
    at a time, as the square of a mean is not the mean of squares. Takes twice the model's memory in fp32 beside it.
    """
    import torch

    parameters = dict(transformer.named_parameters())
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    count = 0
    for batch in batches:
        for i in range(len(batch)):
            example = batch[i]
            loss = (example.velocity(transformer) - example.target).square().mean()
            gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                sums[name].addcmul_(gradient, gradient)
            count += 1
    for tensor in _canonical(transformer):
        whole = torch.empty(tensor.shape)
        for piece in tensor.pieces["diffusers"]:
            stored = sums[piece.name][piece.at : piece.at + piece.rows]
            whole[piece.start : piece.start + piece.rows] = stored.detach()
        yield tensor.name, whole.div_(max(count, 1))
