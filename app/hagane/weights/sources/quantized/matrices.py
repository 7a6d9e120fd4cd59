"""The matrices of quantized checkpoints, read in blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hagane.kernels.cpu import GroupedForm
from hagane.weights.sources.grouped_rows import GroupedRows, Groups

# Elements decoded at a time.
_BLOCK_ELEMENTS = 1 << 18
# Kernels have codes of so many bits; fewer are kept in the next of them.
_KERNEL_BITS = {2: 4, 3: 4, 4: 4, 5: 5, 6: 6, 7: 8, 8: 8}


def _spans(rows: int, columns: int, most: int) -> Iterator[tuple[int, int]]:
    step = min(most, max(1, _BLOCK_ELEMENTS // columns))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


@dataclass(frozen=True, eq=False)
class GroupedMatrix(GroupedRows):
    """Codes of 2 to 8 bits: a weight is scale * (code - zero point).

    `codes` reads rows [start, stop) as uint8 [n, in]. `scale` [out, groups] is float,
    `zeros` [out, groups] uint8. `group_of` [in] is the group of each input, int64; None: groups of
    one size, in order.
    """

    bits: int
    size: tuple[int, int]
    codes: Callable[[int, int], Tensor]
    scale: Tensor
    zeros: Tensor
    group_of: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size

    @property
    def middle(self) -> int:
        """The zero point of symmetric codes."""
        return 1 << (self.bits - 1)

    @cached_property
    def group(self) -> int | None:
        """Inputs of each group; None if groups differ."""
        inputs, groups = self.size[1], self.scale.shape[1]
        if inputs % groups:
            return None
        if self.group_of is not None:
            counts = torch.bincount(self.group_of, minlength=groups)
            if (counts != inputs // groups).any():
                return None
        return inputs // groups

    @cached_property
    def form(self) -> GroupedForm | None:
        if self.group is None or self.group % 16 or self.size[1] % 32:
            return None
        half = self.scale.half().float()
        # Smaller scales than float16 has would lose their digits.
        if ((half - self.scale.float()).abs() > half.abs() * 2.0**-10).any():
            return None
        width = 32 if self.group % 32 == 0 else 16
        symmetric = bool((self.zeros == self.middle).all())
        return GroupedForm(_KERNEL_BITS[self.bits], width, self.middle, not symmetric)

    @cached_property
    def input_order(self) -> Tensor | None:
        if self.group_of is None or bool((self.group_of.diff() >= 0).all()):
            return None
        return self.group_of.argsort(stable=True)

    def groups(self, start: int, stop: int) -> Groups:
        form, group = self.form, self.group
        if form is None or group is None:
            raise ValueError("kernels have no form for these groups")
        codes = self.codes(start, stop)
        if self.input_order is not None:
            codes = codes[:, self.input_order]
        # A byte's difference wraps around to the signed code.
        signed = (codes - self.middle).view(torch.int8)
        scale = self.scale[start:stop].float()
        minimum = None
        if form.has_minimum:
            minimum = scale * (self.middle - self.zeros[start:stop].float())
        repeats = group // form.group
        if repeats > 1:
            scale = scale.repeat_interleave(repeats, dim=1)
            minimum = None if minimum is None else minimum.repeat_interleave(repeats, dim=1)
        return Groups(signed, scale, minimum)

    def split(self, split_size: int) -> Iterator[Tensor]:
        """float32."""
        inputs, groups = self.size[1], self.scale.shape[1]
        of = self.group_of
        if of is None:
            of = torch.arange(inputs) // (inputs // groups)
        for start, stop in _spans(*self.size, split_size):
            zeros = self.zeros[start:stop].float()[:, of]
            yield (self.codes(start, stop).float() - zeros) * self.scale[start:stop].float()[:, of]


@dataclass(frozen=True, eq=False)
class ChannelMatrix:
    """int8 codes [out, in] with a float32 scale for each output [out]."""

    codes: Tensor
    scale: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    def __len__(self) -> int:
        return len(self.codes)

    def split(self, split_size: int) -> Iterator[Tensor]:
        """float32."""
        for start, stop in _spans(*self.shape, split_size):
            yield self.codes[start:stop].float() * self.scale[start:stop, None]


@dataclass(frozen=True, eq=False)
class Fp8Matrix:
    """e4m3 weights [out, in] with float32 scales [out / rows, in / columns] of blocks."""

    weights: Tensor
    scale: Tensor
    block: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        return self.weights.shape[0], self.weights.shape[1]

    def __len__(self) -> int:
        return len(self.weights)

    def split(self, split_size: int) -> Iterator[Tensor]:
        """float32."""
        rows, columns = self.block
        whole = self.weights.shape[1] % columns == 0
        across = torch.arange(self.weights.shape[1]) // columns
        for start, stop in _spans(*self.shape, split_size):
            scale = self.scale[torch.arange(start, stop) // rows]
            weights = self.weights[start:stop].float()
            if whole:
                weights.unflatten(1, (-1, columns)).mul_(scale[:, :, None])
                yield weights
            else:
                yield weights * scale[:, across]
