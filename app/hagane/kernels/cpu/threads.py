"""The kernels' threads, and the instruction set that they run."""

from __future__ import annotations

import ctypes
import sys

from hagane.kernels.cpu import extension
from hagane.system.machine import usable_cores


def available() -> bool:
    """Whether the extension was built; it needs a C++ compiler at installation."""
    return extension.built()


def instruction_set() -> str:
    """The best one that this machine runs, as generic, avx2, avx512, amx or neon."""
    return str(extension.select(None))


def start(threads: int | None = None, instruction_set: str | None = None) -> str:
    """Pin one thread to each of the cores that this process may use, or to `threads` of them.

    Returns the instruction set in use: the best one here, or the requested one. Raises ValueError
    if that is not to be had.
    """
    chosen = extension.select(instruction_set)
    if chosen is None:
        raise ValueError(f"this machine cannot run {instruction_set} kernels")
    cores = usable_cores()
    extension.start(cores[: threads or len(cores)])
    _keep_freed_memory()
    return chosen


def start_beside_torch(threads: int | None = None) -> None:
    """`start` for training: torch's products run in between, so its own threads do all the work.

    A second pool would wait for the cores on which torch's threads spin, a millisecond or so for
    every operation.
    """
    start(threads)
    extension.borrow(threads or len(usable_cores()))


def _keep_freed_memory() -> None:
    """Every step allocates the same buffers: the C library shall not return them in between.

    The page faults of getting them back cost more than the smaller operations themselves.
    """
    if sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        for parameter in (trim_threshold, mmap_threshold):
            ctypes.CDLL(None).mallopt(parameter, 1 << 30)
