"""FLUX.1: fold the embedding of one guidance value into the time embedding, so that the guidance layers can go."""

import math

from fluxsmith.methods.base import Weight, merge_method

__all__ = ["bake_guidance"]


@merge_method(whole=True, propagates=True)
def bake_guidance(bias: Weight, in_weight: Weight, in_bias: Weight, out_weight: Weight, out_bias: Weight, *, guidance: float) -> Weight:
    """time_in.out_layer.bias + guidance_in(embed(1000 * guidance)).

    Both embeddings are added in the model, so the sum is exact at this guidance. embed is the sinusoidal embedding of
    256 values, cosines first (Vaswani et al. 2017); guidance_in is linear, SiLU, linear.
    """
    import torch

    half = in_weight.shape[1] // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64) / half)
    angles = 1000 * guidance * frequencies
    embedded = torch.cat([angles.cos(), angles.sin()]).to(in_weight)
    hidden = torch.nn.functional.silu(in_weight @ embedded + in_bias)
    return bias + out_weight @ hidden + out_bias
