"""Selectors: which tensors a number or a rule is for, in canonical names whatever the files' layout.

double.3   double.0-9   single   double.4-8.img_attn    blocks, ranges of blocks, and a part of them; what a family's
in.4   mid   joint.0-11   layer.0-5   clip_l.3           blocks are called: docs/families.md
img_attn   txt_mlp   modulation   guidance   q   k   v  named parts (q, k, v and mlp cut fused tensors)
*.img_mlp.*   final_layer.*                             globs on the canonical name
re:(img|txt)_attn\\.proj                                 a regular expression, searched anywhere in the name
"""

import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from fluxsmith.errors import Position, RecipeError
from fluxsmith.layouts.table import Canonical

__all__ = ["Selector"]

_BLOCK = re.compile(r"^([A-Za-z]\w*)(?:\.(\d+)(?:-(\d+))?)?(?:\.([A-Za-z_]\w*))?$")


@dataclass(frozen=True)
class Selector:
    """One selector as it was written, and where; `matches` asks for a tensor and one of its segments.

    Raises RecipeError where it is a regular expression that cannot be read.
    """

    text: str
    at: Position | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        try:
            re.compile(self.text.removeprefix("re:") if self.text.startswith("re:") else "")
        except re.error as error:
            raise RecipeError("recipe.bad-selector", f"`{self.text}` is no regular expression: {error}", at=self.at) from None

    def matches(self, tensor: Canonical, segment: str | None = None) -> bool:
        """Whether the tensor (or the rows of it called `segment`) is meant."""
        if self.text.startswith("re:"):
            return re.search(self.text[3:], tensor.name) is not None
        block = _BLOCK.match(self.text)
        if block and self._in_block(block, tensor) and (block[4] is None or _is_part(block[4], tensor, segment)):
            return True
        if any(mark in self.text for mark in "*?["):
            return fnmatchcase(tensor.name, self.text)
        return self.text in (tensor.name, tensor.block) or _is_part(self.text, tensor, segment)

    def _in_block(self, match: re.Match[str], tensor: Canonical) -> bool:
        if tensor.block is None or not tensor.block.startswith(f"{match[1]}."):
            return False
        first, last = self.block_range() or (0, None)
        index = int(tensor.block.split(".")[1])
        return index >= first and (last is None or index <= last)

    def block_range(self) -> tuple[int, int] | None:
        """First and last block number where the selector gives them."""
        match = _BLOCK.match(self.text)
        if match is None or match[2] is None:
            return None
        return int(match[2]), int(match[3] or match[2])


def _is_part(part: str, tensor: Canonical, segment: str | None) -> bool:
    return part == segment or part in tensor.tags
