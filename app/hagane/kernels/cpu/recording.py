"""Memory for steps that are recorded once and replayed: what a graph's memory pool is on a GPU."""

from __future__ import annotations

import ctypes
import math
import mmap
import weakref
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from hagane.kernels.cpu import extension


class Workspace:
    """Buffers that recordings share; two of them never run at the same time.

    A buffer is free again when no tensor in it is left. So tensors that die while a recording is
    made give their memory to later ones, as they do when a step runs by itself.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, list[mmap.mmap]] = defaultdict(list)

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Like torch.empty, in memory that stays valid as long as the workspace."""
        # Powers of two, so that recordings of other batch sizes find buffers to share.
        size = max(mmap.PAGESIZE, 1 << (math.prod(shape) * dtype.itemsize - 1).bit_length())
        free = self._free[size]
        buffer = free.pop() if free else _map(size)
        # The tensor and its views keep `memory` alive; the buffer is free again when it dies.
        memory = (ctypes.c_char * size).from_buffer(buffer)
        weakref.finalize(memory, free.append, buffer).atexit = False
        return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape)).view(shape)

    def alias(self, tensor: Tensor) -> Tensor:
        """The same memory, where others may lie as soon as `tensor` is gone; keeps the workspace.

        `tensor` is one of `empty`'s, or the start of one.
        """
        memory = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
        memory.workspace = self  # type: ignore[attr-defined]
        return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)


def _map(size: int) -> mmap.mmap:
    buffer = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


Replay = Callable[..., Tensor | None]

# Where results go while a recording is made; else torch's allocator has room for them.
_workspace: Workspace | None = None
# Of a recording: kernels, calls between them, and, as None, where the rest may be left undone.
_Part = extension.Recording | Callable[[], None] | None
# The finished parts of the recording that is being made.
_parts: list[_Part] = []


def record(step: Callable[[], Tensor], workspace: Workspace) -> Replay:
    """A function that runs the kernels of `step` and returns its result: no Python in between.

    All that `step` computes must come from this backend, from tensors that stay where they are: it
    is called, but nothing is computed before the function is. Its result lies in the
    workspace, until another recording of it runs. Where `step` calls `cut`, the function asks its
    argument, if it has one, whether to leave the rest undone; then it returns None.
    """
    global _workspace, _parts
    _workspace, _parts = workspace, (parts := [])
    extension.record()
    try:
        result = step()
    finally:
        _workspace = None
        parts.append(extension.recorded())
    # One tensor for all replays: making one takes torch a tenth of a millisecond after kernels that
    # have emptied the caches.
    alias = workspace.alias(result)

    def replay(leaves: Callable[[], bool] | None = None) -> Tensor | None:
        for part in parts:
            if callable(part):
                part()
            elif part is not None:
                extension.replay(part)
            elif leaves is not None and leaves():
                return None
        return alias

    return replay


def cut() -> None:
    """Where a recording is made, begin another part of it."""
    _begin_part_after(None)


def call(function: Callable[[], None]) -> None:
    """Call `function` between two kernels: now, or each time that a recording is replayed.

    Of the step's own tensors it may hold those that are `lasting`.
    """
    if _workspace is None:
        function()
    else:
        _begin_part_after(function)


def lasting(tensor: Tensor) -> Tensor:
    """A result of `empty` for a `call`: where a recording is made, its place in the workspace."""
    return tensor if _workspace is None else _workspace.alias(tensor)


def compute(function: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
    """function(x, *others) in x's shape and dtype, by torch in the place of a kernel.

    Where a recording is made it is called each time that this is replayed. `others` are small, or
    stay where they are.
    """
    if _workspace is None:
        return function(x, *others).to(x.dtype)
    out = empty(*x.shape, dtype=x.dtype)
    source, result = _place(_workspace, x), lasting(out)

    def run() -> None:
        # Of its own: recordings may be replayed in another thread than they are made in.
        with torch.inference_mode():
            result.copy_(function(source, *others))

    call(run)
    return out


def _place(workspace: Workspace, x: Tensor) -> Tensor:
    """The place of a result, or of a view of one."""
    extent = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    flat = workspace.alias(x.as_strided((extent,), (1,)))
    return flat.as_strided(x.shape, x.stride(), flat.storage_offset())


def _begin_part_after(part: _Part) -> None:
    _parts.extend((extension.recorded(), part))
    extension.record()


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """Memory for a result: the workspace's while a recording is made, else the allocator's."""
    if _workspace is None:
        return torch.empty(*shape, dtype=dtype)
    return _workspace.empty(*shape, dtype=dtype)
