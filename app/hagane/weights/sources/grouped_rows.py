"""Matrices whose weights are integer codes in groups with a scale: GGUF's blocks, GPTQ, AWQ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from hagane.kernels.cpu import GroupedForm


@dataclass(frozen=True)
class Groups:
    """Decoded rows or blocks: a weight is scale * code (+ minimum).

    `codes` [n, weights] is int8, `scale` and `minimum` [n, groups] are float32; `minimum` is None
    where the format has none.
    """

    codes: Tensor
    scale: Tensor
    minimum: Tensor | None = None

    def dequantize(self) -> Tensor:
        """float32 [n, weights]."""
        groups = self.scale.shape[1]
        weights: Tensor = self.codes.float().unflatten(1, (groups, -1)).mul_(self.scale[:, :, None])
        if self.minimum is not None:
            weights += self.minimum[:, :, None]
        return weights.flatten(1)


class GroupedRows(ABC):
    """A stored matrix (`Rows`) that kernels can read with the bits that it has.

    `form` is how they hold it, None if they cannot: codes of `groups` are stored plus `form.zero`,
    in `form.group` inputs to a scale. `input_order` is the input that each column of the codes
    multiplies; None: in order.
    """

    @property
    @abstractmethod
    def form(self) -> GroupedForm | None: ...

    @property
    def input_order(self) -> Tensor | None:
        return None

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def split(self, split_size: int) -> Iterable[Tensor]: ...

    @abstractmethod
    def groups(self, start: int, stop: int) -> Groups:
        """Rows [start, stop): all codes of a row, or of a block, are one row of the result."""
