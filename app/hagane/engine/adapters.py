"""LoRA adapters in the engine's memory, known by the digest of their content.

They are read and packed in another thread while steps run, and only put in place between two steps.
When room is needed the least recently asked for goes, never one that a live request uses: so a
request ends with the version of an adapter that it began with.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Set
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Protocol

from hagane.engine.background_thread import BackgroundThread, failure
from hagane.engine.prerequisites import Failure, Settled
from hagane.lora.banks import PackedAdapter
from hagane.lora.files import Adapter, load_adapter
from hagane.models.config import ModelConfig
from hagane.pool.messages import AdapterRef, AdapterStats, GenerateRequest
from hagane.system.errors import ModelError

# Hears why an adapter does not fit the model, or None if it does.
Answer = Callable[[str | None], None]


class Banks(Protocol):
    """Where adapters of a model are put: `AdapterBanks`, or those of several ranks.

    >>> banks.place(0, banks.pack(banks.resolve(adapter)))
    """

    @property
    def config(self) -> ModelConfig: ...

    def resolve(self, adapter: Adapter) -> Adapter: ...

    def size(self, adapter: Adapter) -> int: ...

    def pack(self, adapter: Adapter) -> PackedAdapter: ...

    def place(self, slot: int, adapter: PackedAdapter) -> None: ...

    def clear(self, slot: int) -> None: ...


class Adapters:
    """Loads what requests ask for, within `memory` bytes; a `Provider` of prerequisites.

    `slots` holds the bank slot of each loaded one. `read` loads a directory for the banks'
    model; it runs in `thread`.
    """

    def __init__(
        self,
        banks: Banks,
        memory: int,
        thread: BackgroundThread,
        read: Callable[[Path, ModelConfig], Adapter] = load_adapter,
    ) -> None:
        self.slots: dict[str, int] = {}
        self._banks, self._memory, self._load = banks, memory, read
        self._thread = thread
        # By digest, each in order; what is loaded or has its room reserved counts its bytes.
        self._reading: dict[str, Future[Adapter]] = {}
        self._fitting: dict[str, Adapter] = {}
        self._packing: dict[str, Future[PackedAdapter]] = {}
        self._nbytes: OrderedDict[str, int] = OrderedDict()
        self._unwanted: set[str] = set()
        self._checks: dict[str, list[Answer]] = {}
        self._loads = self._evictions = 0

    @property
    def busy(self) -> bool:
        """Whether `poll` has anything to look after."""
        return bool(self._reading or self._fitting or self._packing or self._unwanted)

    @property
    def lacks_room(self) -> bool:
        """Whether an adapter waits for live requests to give up the memory of theirs."""
        return bool(self._fitting)

    def stats(self, requests: int) -> AdapterStats:
        """Gauges and counters; `requests` wait for an adapter."""
        return AdapterStats(
            loaded=len(self.slots),
            nbytes=sum(self._nbytes.values()),
            requests=requests,
            loads=self._loads,
            evictions=self._evictions,
        )

    def want(self, request: GenerateRequest) -> str | None:
        """The digest of the adapter that `request` has to wait for; None if there is none."""
        if request.adapter is None or self._load_if_missing(request.adapter):
            return None
        return request.adapter.digest

    def check(self, adapter: AdapterRef, answer: Answer) -> None:
        """Read an adapter, answer whether it fits, and load it if there is room."""
        digest = adapter.digest
        if self._load_if_missing(adapter) or digest in self._fitting or digest in self._packing:
            answer(None)
        else:
            self._checks.setdefault(digest, []).append(answer)

    def _load_if_missing(self, adapter: AdapterRef) -> bool:
        """Whether it is loaded."""
        digest = adapter.digest
        self._unwanted.discard(digest)
        if digest in self.slots:
            self._nbytes.move_to_end(digest)
            return True
        if not (digest in self._reading or digest in self._fitting or digest in self._packing):
            self._reading[digest] = self._thread.submit(self._read, adapter)
        return False

    def unload(self, digest: str) -> None:
        """Free its memory once no request uses it."""
        if digest in self._nbytes:
            self._unwanted.add(digest)

    def poll(self, in_use: Set[str]) -> Iterator[Settled]:
        """The adapters that are now in place, or will never be. Those `in_use` stay."""
        for digest in (self._unwanted & self.slots.keys()) - in_use:
            self._remove(digest)
            self._unwanted.discard(digest)
        yield from self._collect_read()
        # Before the new ones are in place: `in_use` does not know them yet.
        self._start_packing(in_use)
        yield from self._collect_packed()

    def _read(self, adapter: AdapterRef) -> Adapter:
        loaded = self._load(Path(adapter.directory), self._banks.config)
        if loaded.digest != adapter.digest:
            raise ModelError(
                f"{adapter.directory} has changed since it was registered: load it again"
            )
        for module, tensor in loaded.tensors():
            if not tensor.isfinite().all():
                raise ModelError(f"{adapter.directory}: {module} holds values that are not finite")
        resolved = self._banks.resolve(loaded)
        for module, change in resolved.changes.items():
            if change.gain is not None and not change.gain.isfinite().all():
                raise ModelError(
                    f"{adapter.directory}: the magnitudes of {module} do not fit the base's weights"
                )
        return resolved

    def _collect_read(self) -> Iterator[Settled]:
        for digest in [d for d, future in self._reading.items() if future.done()]:
            future = self._reading.pop(digest)
            error = failure(future) or self._too_large(future.result())
            for answer in self._checks.pop(digest, ()):
                answer(error)
            if error is None:
                self._fitting[digest] = future.result()
            else:
                yield Settled(digest, Failure("adapter_error", error))

    def _too_large(self, adapter: Adapter) -> str | None:
        size = self._banks.size(adapter)
        if size <= self._memory:
            return None
        return (
            f"the adapter takes {size} bytes, but all adapters together may take "
            f"{self._memory}: raise adapter_memory"
        )

    def _collect_packed(self) -> Iterator[Settled]:
        for digest in [d for d, future in self._packing.items() if future.done()]:
            future = self._packing.pop(digest)
            if (error := failure(future)) is not None:
                del self._nbytes[digest]
                yield Settled(digest, Failure("adapter_error", error))
                continue
            slot = next(slot for slot in count() if slot not in self.slots.values())
            self._banks.place(slot, future.result())
            self.slots[digest] = slot
            self._loads += 1
            yield Settled(digest)

    def _start_packing(self, in_use: Set[str]) -> None:
        """In the order of asking: a small one shall not pass a large one that waits for room."""
        for digest, adapter in list(self._fitting.items()):
            size = self._banks.size(adapter)
            if not self._make_room(size, in_use):
                return
            del self._fitting[digest]
            self._nbytes[digest] = size
            self._packing[digest] = self._thread.submit(self._banks.pack, adapter)

    def _make_room(self, size: int, in_use: Set[str]) -> bool:
        """Evict as few as will do; False, and none, if those that may go are not enough."""
        excess = sum(self._nbytes.values()) + size - self._memory
        victims = []
        for digest, nbytes in self._nbytes.items():
            if excess <= 0:
                break
            if digest in self.slots and digest not in in_use:
                victims.append(digest)
                excess -= nbytes
        if excess > 0:
            return False
        for digest in victims:
            self._remove(digest)
            self._evictions += 1
        return True

    def _remove(self, digest: str) -> None:
        self._banks.clear(self.slots.pop(digest))
        del self._nbytes[digest]
