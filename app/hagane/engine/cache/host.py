"""Slots of host memory for KV blocks that left the pool."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Sequence

import torch

from hagane.system.errors import ConfigurationError


class HostMemory:
    """At most `limit` bytes of blocks of `block_bytes` each, least recently used first to go.

    A block lies in a slot, a row of `slots`, uint8 [slots, block bytes], whose pages are mapped
    when they are first written. A borrowed slot is its borrower's until it is filled or given back.

    Raises:
        ConfigurationError: the limit is less than a block, or more than the system gives.
    """

    def __init__(self, limit: int, block_bytes: int) -> None:
        self.capacity = limit // block_bytes
        if not self.capacity:
            raise ConfigurationError(
                f"kv_cache_host_memory is {limit} bytes, less than one block of {block_bytes}: "
                "give it more, or none at all"
            )
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        try:
            self._memory = mmap.mmap(-1, self.capacity * block_bytes, private)
        except OSError as error:
            raise ConfigurationError(
                f"kv_cache_host_memory of {limit} bytes cannot be had: {error}"
            ) from None
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.slots = torch.frombuffer(self._memory, dtype=torch.uint8).view(-1, block_bytes)
        self._block_bytes = block_bytes
        self._empty = list(range(self.capacity - 1, -1, -1))
        self._known: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, digest: object) -> bool:
        return digest in self._known

    @property
    def idle(self) -> int:
        """Slots that are not borrowed."""
        return len(self._empty) + len(self._known)

    def content(self, slot: int) -> memoryview:
        """The bytes of a slot, to read or to write."""
        start = slot * self._block_bytes
        return memoryview(self._memory)[start : start + self._block_bytes]

    def find(self, digests: Sequence[bytes]) -> list[int]:
        """Slots of known blocks, which count as used just now: the first one last.

        A prompt's later blocks are of no use without its first ones, and go before them.
        """
        for digest in reversed(digests):
            self._known.move_to_end(digest)
        return [self._known[digest] for digest in digests]

    def borrow(self, most: int) -> list[int]:
        """Up to `most` slots: empty ones, then those of the least recently used blocks."""
        taken = [self._empty.pop() for _ in range(min(most, len(self._empty)))]
        more = min(most - len(taken), len(self._known))
        return taken + [self._known.popitem(last=False)[1] for _ in range(more)]

    def fill(self, digest: bytes, slot: int) -> None:
        """Give a slot back that holds a block now, used just now."""
        if digest in self._known:
            self._empty.append(slot)
        else:
            self._known[digest] = slot

    def give_back(self, slots: Sequence[int]) -> None:
        """Give slots back that hold nothing."""
        self._empty += slots
