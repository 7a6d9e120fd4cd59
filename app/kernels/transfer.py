"""Between host and device without waiting: what a step sends there, and what it hears back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# What any dtype may begin at, and a vectorised load would like.
_ALIGNMENT = 16


def send(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of the host on `device`, which may have other things to do first.

    In one copy, and from pinned memory: a copy from any other may wait for the device.
    """
    if device.type == "cpu":
        return list(tensors)
    packed = pack(tensors, pin_memory=True)
    return unpack(packed.to(device, non_blocking=True), tensors)


def pack(tensors: Sequence[Tensor], *, pin_memory: bool) -> Tensor:
    """The bytes of all of them in one uint8 tensor, each from a multiple of 16 on."""
    size = sum(map(_padded, tensors))
    packed = torch.empty(size, dtype=torch.uint8, pin_memory=pin_memory)
    for part, tensor in zip(unpack(packed, tensors), tensors, strict=True):
        part.copy_(tensor)
    return packed


def unpack(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The parts of what `pack` made of `like`, as views."""
    parts, start = [], 0
    for tensor in like:
        part = packed[start : start + tensor.nbytes].view(tensor.dtype)
        parts.append(part.view(tensor.shape))
        start += _padded(tensor)
    return parts


def _padded(tensor: Tensor) -> int:
    return math.ceil(tensor.nbytes / _ALIGNMENT) * _ALIGNMENT


class Fetch:
    """The copy of a tensor to the host, begun now: what the device is given later delays no one."""

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor
        self._done: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()

    def wait(self) -> Tensor:
        """The copy, once it is whole."""
        if self._done is not None:
            self._done.synchronize()
        return self._copy
