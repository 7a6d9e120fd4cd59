"""Matrices in MXFP4: 4-bit floats (e2m1) with a power of two for every 32.

Open Compute Project, Microscaling Formats, version 1.0, 2023. A float is half an integer, which
codes of 5 bits hold: so kernels multiply by the same values, exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hagane.kernels.cpu import GroupedForm
from hagane.weights.sources.grouped_rows import GroupedRows, Groups

GROUP = 32
# Twice the value of each code.
_DOUBLED = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=torch.int8)
# Of the stored exponents; one more, since codes are doubled.
_BIAS = 127 + 1
# What float16 has, down to its smallest number.
_EXPONENTS = (_BIAS - 24, _BIAS + 15)
# Elements decoded at a time.
_BLOCK_ELEMENTS = 1 << 18


def has_form(blocks: Tensor, exponents: Tensor) -> bool:
    """Whether kernels have all scales of `exponents` [..., groups], but those of zeros."""
    outside = _outside(exponents)
    return not (outside.any() and _nonzero(blocks[outside]).any())


def _outside(exponents: Tensor) -> Tensor:
    return (exponents < _EXPONENTS[0]) | (exponents > _EXPONENTS[1])


def _nonzero(blocks: Tensor) -> Tensor:
    """Of every group, whether a code is neither zero nor its negative."""
    return ((blocks & 0x77) != 0).any(dim=-1)


@dataclass(frozen=True, eq=False)
class Mxfp4Matrix(GroupedRows):
    """`blocks` uint8 [out, groups, 16] has two codes a byte, the first in the lower bits.

    `exponents` uint8 [out, groups] are those of the scales, plus 127. Without `kept` it is
    dequantized, though kernels may have a form for it.
    """

    blocks: Tensor
    exponents: Tensor
    kept: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.blocks.shape[0], self.blocks.shape[1] * GROUP

    @cached_property
    def form(self) -> GroupedForm | None:
        if not self.kept or not has_form(self.blocks, self.exponents):
            return None
        return GroupedForm(5, GROUP, 16, False)

    def groups(self, start: int, stop: int) -> Groups:
        blocks = self.blocks[start:stop]
        pairs = torch.stack((blocks & 15, blocks >> 4), dim=-1)
        codes = _DOUBLED[pairs.flatten(1).int()]
        exponents = self.exponents[start:stop].int()
        if (outside := _outside(exponents)).any():
            # Whatever the scale of zeros is, a number of float16 gives zeros.
            exponents = torch.where(outside & ~_nonzero(blocks), _BIAS, exponents)
        return Groups(codes, torch.ldexp(torch.ones(exponents.shape), exponents - _BIAS))

    def split(self, split_size: int) -> Iterator[Tensor]:
        """float32."""
        step = min(split_size, max(1, _BLOCK_ELEMENTS // self.shape[1]))
        for start in range(0, len(self), step):
            yield self.groups(start, min(start + step, len(self))).dequantize()
