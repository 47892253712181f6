"""Modules whose factors have been read, and the deltas that they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fluxsmith.adapters.algorithms import ALGORITHMS, Algorithm, Rows
from fluxsmith.adapters.module import Module, Target
from fluxsmith.errors import IncompatibleError
from fluxsmith.io.codecs.decoding import decode
from fluxsmith.io.dtypes import DTYPES
from fluxsmith.io.numbers import read_bytes
from fluxsmith.io.views import Extent, View

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["ModuleTensors", "Outline", "check_finite", "delta_of", "read_factor", "read_module", "read_values"]


@dataclass(frozen=True)
class ModuleTensors:
    """A module in memory: what an adapter holds for one tensor.

    `factors` are the algorithm's roles as tensors of the type in which they are stored; `settings` and `target` are
    those of a `Module`.
    """

    target: Target
    algorithm: str
    factors: Mapping[str, Tensor]
    settings: Mapping[str, float]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the factors by role."""
        return {role: tuple(factor.shape) for role, factor in self.factors.items()}

    @property
    def rules(self) -> Algorithm:
        """The algorithm itself."""
        return ALGORITHMS[self.algorithm]

    @property
    def outline(self) -> Outline:
        """The module without its factors."""
        return Outline(self.target, self.algorithm, self.shapes, self.settings)


@dataclass(frozen=True)
class Outline:
    """What is left of a module once its factors are written: everything but the values."""

    target: Target
    algorithm: str
    shapes: Mapping[str, tuple[int, ...]]
    settings: Mapping[str, float]

    @property
    def rules(self) -> Algorithm:
        """The algorithm itself."""
        return ALGORITHMS[self.algorithm]


def read_module(module: Module) -> ModuleTensors:
    """A module with its factors, in the types in which the file has them.

    Raises IncompatibleError where a value is not finite.
    """
    factors = {role: read_factor(view) for role, view in module.factors.items()}
    for role, factor in factors.items():
        check_finite(factor, module.factors[role], module.name, role, fix="train it again, or leave the module out with --ignore GLOB")
    return ModuleTensors(module.target, module.algorithm, factors, module.settings)


def check_finite(factor: Tensor, view: View, module: str, role: str, *, fix: str) -> None:
    """Raise IncompatibleError where a factor, which `view` has in a file, has values that are not finite."""
    bad = int((~factor.float().isfinite()).count_nonzero())
    if bad:
        file = view.extents[0].file
        raise IncompatibleError(
            "values.not-finite",
            f"{file} has {bad} {'value that is' if bad == 1 else 'values that are'} not finite in `{module}`",
            facts={"file": file, "module": module, "factor": role},
            fix=fix,
        )


def read_factor(view: View) -> Tensor:
    """A plain tensor of one type as it is stored; other views by their values, fp32."""
    import torch

    if len(view.dtypes) != 1 or view.coded or view.transposed:
        return read_values(view)
    return _plain(bytearray(read_bytes(view)), _torch_type(view.extents[0])).reshape(view.shape) if view.count else torch.empty(view.shape)


def read_values(view: View) -> Tensor:
    """The values of any view in fp32, quantised ones decoded."""
    import torch

    values = torch.cat([_values(extent) for extent in view.extents]) if view.extents else torch.empty(0)
    return values.reshape(view.shape[::-1]).T.contiguous() if view.transposed else values.reshape(view.shape)


def _values(extent: Extent) -> Tensor:
    import torch

    def read(plain: Extent, into: Tensor) -> None:
        into.copy_(_plain(bytearray(read_bytes(View((plain.count,), (plain,)))), torch.uint8))

    if extent.codec is not None:
        return decode(extent, read, lambda name, nbytes: torch.empty(nbytes, dtype=torch.uint8)).float()
    return _plain(bytearray(read_bytes(View((extent.count,), (extent,)))), _torch_type(extent)).float()


def _plain(raw: bytearray, dtype: torch.dtype) -> Tensor:
    import torch

    return torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)


def _torch_type(extent: Extent) -> torch.dtype:
    import torch

    return getattr(torch, DTYPES[extent.dtype].torch or "uint8")


def delta_of(module: ModuleTensors, weight: Tensor | None = None, rows: tuple[int, int] | None = None) -> Tensor:
    """The delta of a module at strength 1, fp32, of the shape of its target or of some of its `rows`.

    `weight` is the base's weight in the layout of the target, whole, fp32; algorithms that multiply need it.
    """
    rules, target = module.rules, module.target
    start, stop = rows or (0, target.shape[0] if target.shape else 1)
    wanted = Rows(start, stop, target.shape)
    ranges = rules.ranges(module.shapes, module.settings, wanted)
    factors = {role: (factor[slice(*ranges[role])] if role in ranges else factor).float() for role, factor in module.factors.items()}
    if weight is not None and rules.reads(module.shapes) != "whole":
        weight = weight[start:stop]
    return rules.delta(factors, module.settings, wanted, weight)
