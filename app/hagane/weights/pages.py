"""Giving memory back to the system while a model is loaded."""

from __future__ import annotations

import ctypes
import mmap
import sys

from torch import Tensor


def release(tensor: Tensor) -> None:
    """Give back the memory of a tensor that is not needed any more, often a view of a file.

    Without this, what was read of a mapped file would stay in memory until it is unmapped.
    """
    if not sys.platform.startswith("linux") or tensor.device.type != "cpu":
        return
    # Only whole pages, so that neighbours that are still in use keep theirs.
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        size = ctypes.c_size_t(last - first)
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), size, mmap.MADV_DONTNEED)


def trim_heap() -> None:
    """Otherwise the C library keeps up to 64 MB of what loading has freed."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
