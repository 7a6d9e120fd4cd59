"""Between host and device without waiting: what a step sends there, and what it hears back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# An alignment for any dtype, and for vectorised loads.
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
    """Copies of a device's tensors to the host, begun now: what it is given later delays no one."""

    def __init__(self, *tensors: Tensor) -> None:
        self._copies = tensors
        self._done: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            self._copies = tuple(
                torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True)
                for t in tensors
            )
            self._done = torch.cuda.Event()
            self._done.record()

    def wait(self) -> tuple[Tensor, ...]:
        """The copies, once they are whole."""
        if self._done is not None:
            self._done.synchronize()
        return self._copies
