"""The U-Net of Stable Diffusion 1.5 and SDXL: original names (`input_blocks.4.1...`) and those of UNet2DConditionModel.

Its blocks are those of merge-block-weighted: `in.N`, `mid.0` and `out.N` are the input, middle and output blocks; the
time embedding stands outside, and the last convolution belongs to the last output block. Every level of the U-Net has
a width symbol; where two levels of a family are equally wide they share one, since then they have no 1x1 shortcut.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fluxsmith.layouts.table import Row, conv, linear, norm

__all__ = ["UNet"]

_RESNETS = 2  # residual blocks per level on the way down; one more on the way up


@dataclass(frozen=True)
class UNet:
    """What tells one U-Net from another.

    `widths` has a symbol per level, `depths` the transformer blocks of each level's attention (0: none), `middle` those
    of the middle block. `linear_projection` says that attention enters and leaves by a matrix, not by a 1x1
    convolution; `added` that a vector of sizes and pooled text is embedded beside the time.
    """

    widths: tuple[str, ...]
    depths: tuple[int, ...]
    middle: int
    linear_projection: bool
    added: bool

    def rows(self) -> tuple[Row, ...]:
        """Every row, in the order in which the network is run."""
        last = self.widths[-1]
        down, skips = self._down()
        middle = [
            *_resnet("middle_block.0", "mid_block.resnets.0", last, last),
            *self._attention("middle_block.1", "mid_block.attentions.0", last, self.middle),
            *_resnet("middle_block.2", "mid_block.resnets.1", last, last),
        ]
        up = self._up(skips)
        final = [norm("out.0", self.widths[0], diffusers="conv_norm_out"), conv("out.2", "out", self.widths[0], 3, diffusers="conv_out")]
        return (*self._embeddings(), *down, *_in_block("mid.0", middle), *up, *_in_block(up[-1].block or "", final))

    def _embeddings(self) -> list[Row]:
        rows = [
            linear("time_embed.0", "E", self.widths[0], diffusers="time_embedding.linear_1"),
            linear("time_embed.2", "E", "E", diffusers="time_embedding.linear_2"),
        ]
        added = [
            linear("label_emb.0.0", "E", "added", diffusers="add_embedding.linear_1"),
            linear("label_emb.0.2", "E", "E", diffusers="add_embedding.linear_2"),
        ]
        return rows + (added if self.added else [])

    def _down(self) -> tuple[list[Row], list[str]]:
        """The input blocks, and the width of what each of them hands on to the output blocks."""
        rows = _in_block("in.0", [conv("input_blocks.0.0", self.widths[0], "in", 3, diffusers="conv_in")])
        skips = [self.widths[0]]
        for level, width in enumerate(self.widths):
            for i in range(_RESNETS):
                n, d = len(skips), f"down_blocks.{level}"
                block = _resnet(f"input_blocks.{n}.0", f"{d}.resnets.{i}", skips[-1], width)
                block += self._attention(f"input_blocks.{n}.1", f"{d}.attentions.{i}", width, self.depths[level])
                rows += _in_block(f"in.{n}", block)
                skips.append(width)
            if level < len(self.widths) - 1:
                n = len(skips)
                step = conv(f"input_blocks.{n}.0.op", width, width, 3, diffusers=f"down_blocks.{level}.downsamplers.0.conv")
                rows += _in_block(f"in.{n}", [step])
                skips.append(width)
        return rows, skips

    def _up(self, skips: list[str]) -> list[Row]:
        """The output blocks, deepest level first."""
        rows: list[Row] = []
        before, n = self.widths[-1], 0
        for place, level in enumerate(reversed(range(len(self.widths)))):
            width, u = self.widths[level], f"up_blocks.{place}"
            for i in range(_RESNETS + 1):
                block = _resnet(f"output_blocks.{n}.0", f"{u}.resnets.{i}", f"{before} {skips.pop()}", width)
                attention = self._attention(f"output_blocks.{n}.1", f"{u}.attentions.{i}", width, self.depths[level])
                block += attention
                if i == _RESNETS and level:
                    stem = f"output_blocks.{n}.{2 if attention else 1}.conv"
                    block.append(conv(stem, width, width, 3, diffusers=f"{u}.upsamplers.0.conv"))
                rows += _in_block(f"out.{n}", block)
                before, n = width, n + 1
        return rows

    def _attention(self, ldm: str, diffusers: str, width: str, depth: int) -> list[Row]:
        """Self-attention, attention to the text and a gated MLP, `depth` times, between two projections."""
        if not depth:
            return []
        rows = [norm(f"{ldm}.norm", width, diffusers=f"{diffusers}.norm"), self._projection("in", ldm, diffusers, width)]
        for i in range(depth):
            rows += _transformer_block(f"{ldm}.transformer_blocks.{i}", f"{diffusers}.transformer_blocks.{i}", width)
        return [*rows, self._projection("out", ldm, diffusers, width)]

    def _projection(self, which: str, ldm: str, diffusers: str, width: str) -> Row:
        name = f"{diffusers}.proj_{which}"
        if self.linear_projection:
            return linear(f"{ldm}.proj_{which}", width, width, diffusers=name)
        return conv(f"{ldm}.proj_{which}", width, width, 1, diffusers=name)


def _transformer_block(ldm: str, diffusers: str, width: str) -> list[Row]:
    """The names inside are the same in both layouts; the MLP is four times as wide, with a gate."""
    rows: list[Row] = []

    def matrix(name: str, out: str, into: str, *, bias: bool) -> None:
        rows.append(linear(f"{ldm}.{name}", out, into, bias=bias, diffusers=f"{diffusers}.{name}"))

    for number, (attention, source) in enumerate((("attn1", width), ("attn2", "ctx")), start=1):
        rows.append(norm(f"{ldm}.norm{number}", width, diffusers=f"{diffusers}.norm{number}"))
        matrix(f"{attention}.to_q", width, width, bias=False)
        matrix(f"{attention}.to_k", width, source, bias=False)
        matrix(f"{attention}.to_v", width, source, bias=False)
        matrix(f"{attention}.to_out.0", width, width, bias=True)
    rows.append(norm(f"{ldm}.norm3", width, diffusers=f"{diffusers}.norm3"))
    matrix("ff.net.0.proj", " ".join([width] * 8), width, bias=True)
    matrix("ff.net.2", width, " ".join([width] * 4), bias=True)
    return rows


def _resnet(ldm: str, diffusers: str, into: str, out: str) -> list[Row]:
    """A residual block from `into` (two symbols where a skip is joined) to `out` channels."""
    rows = [
        norm(f"{ldm}.in_layers.0", into, diffusers=f"{diffusers}.norm1"),
        conv(f"{ldm}.in_layers.2", out, into, 3, diffusers=f"{diffusers}.conv1"),
        linear(f"{ldm}.emb_layers.1", out, "E", diffusers=f"{diffusers}.time_emb_proj"),
        norm(f"{ldm}.out_layers.0", out, diffusers=f"{diffusers}.norm2"),
        conv(f"{ldm}.out_layers.3", out, out, 3, diffusers=f"{diffusers}.conv2"),
    ]
    if into != out:
        rows.append(conv(f"{ldm}.skip_connection", out, into, 1, diffusers=f"{diffusers}.conv_shortcut"))
    return rows


def _in_block(block: str, rows: Sequence[Row]) -> list[Row]:
    return [replace(row, block=block) for row in rows]
