"""Brings the blocks that prompts begin with from disk to host memory, before they are scheduled."""

from __future__ import annotations

from collections.abc import Iterator, Set
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count

from hagane.engine.background_thread import BackgroundThread
from hagane.engine.cache.blocks import KVCache
from hagane.engine.cache.disk import DiskTier
from hagane.engine.cache.host import HostMemory
from hagane.engine.prerequisites import Settled
from hagane.engine.schedule.sequence import Sequence
from hagane.pool.messages import GenerateRequest


@dataclass(frozen=True)
class _Loading:
    """Blocks on their way up, by slot; `found` are those whose files were whole."""

    slots: dict[bytes, int]
    found: Future[list[bytes]]


class Prefetch:
    """A `Provider` of the blocks on `disk` that requests begin with, in `host` memory.

    A request waits for its own; others run meanwhile. What cannot be read is computed again.
    """

    def __init__(
        self, cache: KVCache, host: HostMemory, disk: DiskTier, thread: BackgroundThread
    ) -> None:
        self._cache, self._host, self._disk, self._thread = cache, host, disk, thread
        # By the name that a request waits for, in order.
        self._loading: dict[str, _Loading] = {}
        self._coming: set[bytes] = set()
        self._numbers = count()

    @property
    def busy(self) -> bool:
        """Whether `poll` has anything to look after."""
        return bool(self._loading)

    def want(self, request: GenerateRequest) -> str | None:
        """The name of the load that `request` has to wait for; None if it needs none."""
        sequence = Sequence.of(request, arrival=0, now=0.0)
        if sequence.needs_whole_prompt:
            return None
        digests = self._cache.digests(sequence)
        missing = self._missing(digests)
        # Those that are coming for another request were submitted before: one wait suffices.
        new = [digest for digest in missing if digest not in self._coming]
        slots = dict(zip(new, self._borrow(digests, len(new)), strict=False))
        if not missing or (new and not slots):
            return None
        self._coming |= slots.keys()
        name = f"blocks {next(self._numbers)}"
        self._loading[name] = _Loading(slots, self._thread.submit(self._read, slots))
        return name

    def poll(self, in_use: Set[str]) -> Iterator[Settled]:
        """The loads that are done, one after the other."""
        for name in [name for name, loading in self._loading.items() if loading.found.done()]:
            loading = self._loading.pop(name)
            self._coming -= loading.slots.keys()
            found = [] if loading.found.exception() else loading.found.result()
            self._place(loading.slots, set(found))
            yield Settled(name)

    def _missing(self, digests: list[bytes]) -> list[bytes]:
        """Of the leading blocks that are somewhere, those that are on disk alone."""
        missing = []
        for digest in digests:
            if digest in self._cache or digest in self._host:
                continue
            if digest not in self._disk:
                break
            missing.append(digest)
        return missing

    def _borrow(self, digests: list[bytes], count: int) -> list[int]:
        """Slots for `count` of `digests`, none of which is that of another one of them."""
        there = self._host.find([digest for digest in digests if digest in self._host])
        return self._host.borrow(min(count, self._host.idle - len(there)))

    def _read(self, slots: dict[bytes, int]) -> list[bytes]:
        """In the thread; the first one last, so that it counts as the most recently used."""
        read, content = self._disk.files.read, self._host.content
        return [digest for digest, slot in reversed(slots.items()) if read(digest, content(slot))]

    def _place(self, slots: dict[bytes, int], found: set[bytes]) -> None:
        for digest, slot in reversed(slots.items()):
            if digest in found:
                self._host.fill(digest, slot)
                self._disk.count_loaded(digest)
            else:
                self._host.give_back([slot])
                self._disk.count_lost(digest)
