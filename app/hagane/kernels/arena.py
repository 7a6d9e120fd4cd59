"""Memory in large pages, for matrices that are read from end to end."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

_LINE = 64


class Arena:
    """`nbytes` bytes in large pages, filled by `put` in order; the system's again with its tensors.

    Many small matrices, each in pages of its own, wait for the translation of their addresses
    longer than for themselves.
    """

    def __init__(self, nbytes: int) -> None:
        self._memory = mmap.mmap(-1, max(nbytes, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._used = 0

    @staticmethod
    def room(nbytes: int, tensors: int) -> int:
        """Bytes that so many tensors of `nbytes` together need at most, each at a line's start."""
        return nbytes + tensors * _LINE

    def put(self, tensor: Tensor) -> Tensor:
        """A contiguous copy that lies in here."""
        if not tensor.numel():
            return tensor
        return self.zeros(tensor.shape, tensor.dtype).copy_(tensor)

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor that lies in here, not empty."""
        count = math.prod(shape)
        zeros = torch.frombuffer(self._memory, dtype=dtype, count=count, offset=self._used)
        self._used += -(-zeros.nbytes // _LINE) * _LINE
        return zeros.view(tuple(shape))


class Arenas:
    """Arenas one after the other, each of `nbytes` or of what a larger matrix needs.

    For matrices whose number is not known before: those of a model, most of them smaller than a few
    large pages, so that in pages of their own they would get none.
    """

    def __init__(self, nbytes: int) -> None:
        self._nbytes, self._left = nbytes, 0

    def put(self, tensor: Tensor) -> Tensor:
        """A contiguous copy that lies in one of them."""
        return self._with_room(tensor.nbytes).put(tensor)

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor that lies in one of them, not empty."""
        return self._with_room(math.prod(shape) * dtype.itemsize).zeros(shape, dtype)

    def _with_room(self, nbytes: int) -> Arena:
        room = Arena.room(nbytes, 1)
        if room > self._left:
            self._left = max(room, self._nbytes)
            self._arena = Arena(self._left)
        self._left -= room
        return self._arena
