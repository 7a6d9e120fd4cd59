"""Memory below the pool of KV blocks: host memory, and files that outlive the process.

A block that is evicted from the pool goes to host memory, and one that becomes full to a file, too.
The blocks there that a prompt begins with are brought back: from host memory with the sequence's
first step, from files before it. Tiered prefix caches such as Mooncake's (Qin et al. 2024,
arXiv:2407.00079) move blocks this way.

Copies between the pool and here belong to a step; checksums and files are a thread's. The engine's
own thread alone keeps the books.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hagane.engine.background_thread import BackgroundThread
from hagane.engine.cache.blocks import Content, KVCache, Moves
from hagane.engine.cache.disk import DiskTier
from hagane.engine.cache.host import HostMemory
from hagane.engine.cache.prefetch import Prefetch
from hagane.pool.messages import TierStats

logger = logging.getLogger(__name__)

# Bytes on their way down at a time; blocks that come meanwhile are not kept.
_MOST_UNDER_WAY = 256 << 20
_AT_A_TIME = 32


class Pool(Protocol):
    """The content of the pool's blocks, as `ModelRunner` has it.

    >>> pool.write_blocks([3], pool.read_blocks([7]))  # block 3 becomes a copy of block 7
    """

    def read_blocks(self, blocks: Sequence[int]) -> Tensor:
        """Copies of blocks, uint8 [blocks, block bytes], on the pool's device."""

    def write_blocks(self, blocks: Sequence[int], content: Tensor) -> None:
        """Fill blocks with what `read_blocks` returned, on any device."""


@dataclass(frozen=True)
class _Saving:
    """Blocks on their way down: the slots of some, and how many get files.

    `saved` are the digests of files that were written.
    """

    slots: dict[bytes, int]
    files: int
    nbytes: int
    saved: Future[list[bytes]]


class KVTiers:
    """Host memory, and perhaps a disk, below a `pool`.

    Its members, `digest in tiers`, are the blocks in host memory, which can be brought back at
    once: what a `KVCache` asks.
    """

    def __init__(
        self, pool: Pool, host: HostMemory, disk: DiskTier | None, thread: BackgroundThread
    ) -> None:
        self.host, self.disk = host, disk
        self._pool, self._thread = pool, thread
        self._under_way: list[_Saving] = []
        self._warned = False
        self._restored = self._written = self._dropped = 0

    def __contains__(self, digest: object) -> bool:
        return digest in self.host

    @property
    def busy(self) -> bool:
        """Whether blocks are on their way down, for `collect` to count."""
        return bool(self._under_way)

    def prefetch(self, cache: KVCache) -> Prefetch:
        """The provider of blocks on disk for a pool whose books `cache` keeps."""
        if self.disk is None:
            raise ValueError("there is no disk")
        return Prefetch(cache, self.host, self.disk, self._thread)

    def stats(self) -> TierStats:
        """Gauges and counters, in blocks."""
        return TierStats(
            host_blocks=len(self.host),
            host_capacity=self.host.capacity,
            disk_blocks=len(self.disk or ()),
            restored=self._restored,
            written=self._written,
            dropped=self._dropped,
            loaded=self.disk.loaded if self.disk else 0,
            lost=self.disk.lost if self.disk else 0,
        )

    def exchange(self, moves: Moves) -> None:
        """Save and restore what the pool's books ask for, before a step writes to its blocks."""
        if not moves:
            return
        keep = self._choose(moves)
        room = max(_MOST_UNDER_WAY - sum(saving.nbytes for saving in self._under_way), 0)
        fitting = room // self.host.slots.shape[1]
        self._dropped += max(len(keep) - fitting, 0)
        # The first blocks of a prompt are evicted last, and nothing after them is found without.
        keep = keep[max(len(keep) - fitting, 0) :]
        copies = self._pool.read_blocks([block for block, _ in keep]) if keep else None
        self._restore(moves.restored)
        # Only now: a slot that is borrowed loses its block.
        if copies is not None:
            self._save([digest for _, digest in keep], moves, copies)

    def _restore(self, contents: list[Content]) -> None:
        slots = self.host.find([digest for _, digest in contents])
        # In parts: a copy on the way of a long prompt's blocks would need memory of its own.
        for at in range(0, len(contents), _AT_A_TIME):
            blocks = [block for block, _ in contents[at : at + _AT_A_TIME]]
            content = torch.stack([self.host.slots[slot] for slot in slots[at : at + _AT_A_TIME]])
            self._pool.write_blocks(blocks, content)
        self._restored += len(contents)

    def collect(self) -> None:
        """Count what was saved since the last call."""
        while self._under_way and self._under_way[0].saved.done():
            saving = self._under_way.pop(0)
            self._finish(saving)

    def close(self) -> None:
        """Wait until all that is on its way down is there, and what goes for it is gone."""
        if self.disk is not None:
            self._thread.submit(int).result()
            self.collect()
            self._thread.submit(self.disk.close).result()

    def _choose(self, moves: Moves) -> list[Content]:
        """The blocks that go down, each once."""
        evicted = [(b, d) for b, d in moves.evicted if d not in self.host]
        disk = self.disk
        filled = [] if disk is None else [(b, d) for b, d in moves.filled if d not in disk]
        return list({digest: (block, digest) for block, digest in evicted + filled}.values())

    def _save(self, digests: list[bytes], moves: Moves, copies: Tensor) -> None:
        evicted = {digest for _, digest in moves.evicted}
        to_host = [digest for digest in digests if digest in evicted]
        slots = dict(zip(to_host, self.host.borrow(len(to_host)), strict=False))
        filled = set() if self.disk is None else {digest for _, digest in moves.filled}
        files = filled.intersection(digests)
        saved = self._thread.submit(self._copy_down, digests, copies, slots, files)
        self._under_way.append(_Saving(slots, len(files), copies.nbytes, saved))

    def _copy_down(
        self, digests: list[bytes], copies: Tensor, slots: dict[bytes, int], files: set[bytes]
    ) -> list[bytes]:
        """In the thread: fill slots and write files; returns the digests of those written."""
        content = copies.cpu()
        written = []
        for row, digest in enumerate(digests):
            if digest in slots:
                self.host.slots[slots[digest]] = content[row]
            if digest in files and self.disk is not None:
                try:
                    self.disk.files.write(digest, content[row].numpy().data)
                    written.append(digest)
                except OSError as error:
                    self._warn(error)
        return written

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            logger.warning("KV blocks cannot be written to disk, others are tried: %s", error)
        self._warned = True

    def _finish(self, saving: _Saving) -> None:
        if (error := saving.saved.exception()) is not None:
            logger.error("KV blocks could not be saved", exc_info=error)
            self.host.give_back(list(saving.slots.values()))
            self._dropped += len(saving.slots) + saving.files
            return
        for digest, slot in saving.slots.items():
            self.host.fill(digest, slot)
        written = saving.saved.result()
        self._written += len(written)
        self._dropped += saving.files - len(written)
        if self.disk is not None and (surplus := self.disk.add(written)):
            self._thread.submit(self.disk.files.delete, surplus)
