"""The VAE of Stable Diffusion 1.5, SDXL and SD3: original names and those of diffusers' AutoencoderKL.

The decoder's levels are counted from the image in the original and from the middle in diffusers. The projections of
its one attention are 1x1 convolutions in the original and matrices in diffusers: the same elements in another shape.
"""

from dataclasses import replace

from fluxsmith.layouts.table import Row, conv, norm

__all__ = ["autoencoder_rows"]

_WIDTHS = ("vae.width0", "vae.width1", "vae.width2", "vae.width2")
_RESNETS = 2


def autoencoder_rows(*, quantised: bool, optional: bool = False) -> tuple[Row, ...]:
    """Every row; `quantised` says whether a 1x1 convolution stands on either side of the latent, as in SD1.5 and SDXL.

    `optional` convolutions are those of any of these VAEs: they are there where the flag `vae.quantised` is 1.
    """
    last = _WIDTHS[-1]
    rows = [conv("encoder.conv_in", _WIDTHS[0], "vae.image", 3)]
    before = _WIDTHS[0]
    for level, width in enumerate(_WIDTHS):
        for i in range(_RESNETS):
            rows += _resnet(f"encoder.down.{level}.block.{i}", f"encoder.down_blocks.{level}.resnets.{i}", before, width)
            before = width
        if level < len(_WIDTHS) - 1:
            stem = f"encoder.down_blocks.{level}.downsamplers.0.conv"
            rows.append(conv(f"encoder.down.{level}.downsample.conv", width, width, 3, diffusers=stem))
    rows += _middle("encoder")
    rows += [norm("encoder.norm_out", last, diffusers="encoder.conv_norm_out"), conv("encoder.conv_out", "vae.z vae.z", last, 3)]
    rows += [conv("decoder.conv_in", last, "vae.z", 3), *_middle("decoder")]
    before = last
    for level in reversed(range(len(_WIDTHS))):
        width, place = _WIDTHS[level], len(_WIDTHS) - 1 - level
        for i in range(_RESNETS + 1):
            rows += _resnet(f"decoder.up.{level}.block.{i}", f"decoder.up_blocks.{place}.resnets.{i}", before, width)
            before = width
        if level:
            rows.append(
                conv(f"decoder.up.{level}.upsample.conv", width, width, 3, diffusers=f"decoder.up_blocks.{place}.upsamplers.0.conv")
            )
    rows += [norm("decoder.norm_out", before, diffusers="decoder.conv_norm_out"), conv("decoder.conv_out", "vae.image", before, 3)]
    if quantised:
        beside = [conv("quant_conv", "vae.z vae.z", "vae.z vae.z", 1), conv("post_quant_conv", "vae.z", "vae.z", 1)]
        rows += [replace(row, optional="vae.quantised" if optional else None) for row in beside]
    return tuple(rows)


def _middle(half: str) -> list[Row]:
    """Two residual blocks with one attention of a single head between them."""
    width, ldm, d = _WIDTHS[-1], f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0"
    parts = (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))
    attention = [conv(f"{ldm}.{a}", width, width, 1, forms={"diffusers": "linear"}, diffusers=f"{d}.{b}") for a, b in parts]
    return [
        *_resnet(f"{half}.mid.block_1", f"{half}.mid_block.resnets.0", width, width),
        norm(f"{ldm}.norm", width, diffusers=f"{d}.group_norm"),
        *attention,
        *_resnet(f"{half}.mid.block_2", f"{half}.mid_block.resnets.1", width, width),
    ]


def _resnet(ldm: str, diffusers: str, into: str, out: str) -> list[Row]:
    rows = [
        norm(f"{ldm}.norm1", into, diffusers=f"{diffusers}.norm1"),
        conv(f"{ldm}.conv1", out, into, 3, diffusers=f"{diffusers}.conv1"),
        norm(f"{ldm}.norm2", out, diffusers=f"{diffusers}.norm2"),
        conv(f"{ldm}.conv2", out, out, 3, diffusers=f"{diffusers}.conv2"),
    ]
    if into != out:
        rows.append(conv(f"{ldm}.nin_shortcut", out, into, 1, diffusers=f"{diffusers}.conv_shortcut"))
    return rows
