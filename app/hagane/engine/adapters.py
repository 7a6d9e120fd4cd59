"""LoRA adapters in the engine's memory, known by the digest of their content.

They are read and packed in another thread while steps run, and only put in place between two steps.
When room is needed the least recently asked for goes, never one that a live request uses: so a
request ends with the version of an adapter that it began with.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TypeVar

from hagane.lora.banks import AdapterBanks, PackedAdapter
from hagane.lora.files import Adapter, load_adapter
from hagane.models.config import ModelConfig
from hagane.pool.messages import AdapterRef, AdapterStats, GenerateRequest
from hagane.system.errors import HaganeError, ModelError
from hagane.system.machine import usable_cores

_T = TypeVar("_T")


@dataclass(frozen=True)
class AdapterEvent:
    """An adapter was found to fit the model, is now in place, or will never be, for `error`."""

    digest: str
    loaded: bool = False
    error: str | None = None


class Adapters:
    """Loads what requests ask for, within `memory` bytes of packed adapters.

    `slots` says where in the banks the loaded ones lie. `read` loads a directory for the banks'
    model; it runs in the loading thread.
    """

    def __init__(
        self,
        banks: AdapterBanks,
        memory: int,
        read: Callable[[Path, ModelConfig], Adapter] = load_adapter,
    ) -> None:
        self.slots: dict[str, int] = {}
        self._banks, self._memory, self._load = banks, memory, read
        self._thread = ThreadPoolExecutor(1, "adapters", _let_steps_go_first, (usable_cores(),))
        # By digest, each in order; what is loaded or has its room reserved counts its bytes.
        self._reading: dict[str, Future[Adapter]] = {}
        self._fitting: dict[str, Adapter] = {}
        self._packing: dict[str, Future[PackedAdapter]] = {}
        self._nbytes: OrderedDict[str, int] = OrderedDict()
        self._unwanted: set[str] = set()
        self._loads = self._evictions = 0

    @property
    def busy(self) -> bool:
        """Whether `poll` has anything to look after."""
        return bool(self._reading or self._fitting or self._packing or self._unwanted)

    def stats(self, requests: int) -> AdapterStats:
        """Gauges and counters; `requests` wait for an adapter."""
        return AdapterStats(
            loaded=len(self.slots),
            nbytes=sum(self._nbytes.values()),
            requests=requests,
            loads=self._loads,
            evictions=self._evictions,
        )

    def want(self, adapter: AdapterRef) -> bool:
        """Whether it is loaded; if not, an event will say when it is, or why it never will be."""
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

    def poll(self, in_use: Set[str]) -> Iterator[AdapterEvent]:
        """Between two steps: what has come of loading. Digests `in_use` stay where they are."""
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
        for module, change in loaded.changes.items():
            if not (change.a.isfinite().all() and change.b.isfinite().all()):
                raise ModelError(f"{adapter.directory}: {module} holds values that are not finite")
        return loaded

    def _collect_read(self) -> Iterator[AdapterEvent]:
        for digest in [d for d, future in self._reading.items() if future.done()]:
            outcome = _outcome(self._reading.pop(digest))
            size = 0 if isinstance(outcome, str) else self._banks.size(outcome)
            if size > self._memory:
                outcome = (
                    f"the adapter takes {size} bytes, but all adapters together may take "
                    f"{self._memory}: raise adapter_memory"
                )
            if isinstance(outcome, str):
                yield AdapterEvent(digest, error=outcome)
            else:
                self._fitting[digest] = outcome
                yield AdapterEvent(digest)

    def _collect_packed(self) -> Iterator[AdapterEvent]:
        for digest in [d for d, future in self._packing.items() if future.done()]:
            outcome = _outcome(self._packing.pop(digest))
            if isinstance(outcome, str):
                del self._nbytes[digest]
                yield AdapterEvent(digest, error=outcome)
                continue
            slot = next(slot for slot in count() if slot not in self.slots.values())
            self._banks.place(slot, outcome)
            self.slots[digest] = slot
            self._loads += 1
            yield AdapterEvent(digest, loaded=True)

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


class HeldRequests:
    """Requests that wait for their adapter, outside the scheduler, in the order of arrival."""

    def __init__(self) -> None:
        self._held: list[tuple[GenerateRequest, float]] = []

    def __len__(self) -> int:
        return len(self._held)

    def add(self, request: GenerateRequest, arrived: float) -> None:
        self._held.append((request, arrived))

    def cancel(self, request_id: str) -> None:
        """Unknown ids are ignored."""
        self._held = [pair for pair in self._held if pair[0].request_id != request_id]

    def expire(self, now: float) -> list[str]:
        """Let go of those whose deadline has passed."""
        late = [r.request_id for r, _ in self._held if r.deadline is not None and r.deadline <= now]
        for request_id in late:
            self.cancel(request_id)
        return late

    def release(self, digest: str) -> list[tuple[GenerateRequest, float]]:
        """Those that waited for `digest`, and when they arrived."""
        released = [pair for pair in self._held if _digest(pair[0]) == digest]
        self._held = [pair for pair in self._held if _digest(pair[0]) != digest]
        return released


def _digest(request: GenerateRequest) -> str:
    return request.adapter.digest if request.adapter else ""


def _let_steps_go_first(cores: list[int]) -> None:
    """The loading thread may use any of `cores`, and yields to steps there."""
    if sys.platform.startswith("linux"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        os.sched_setaffinity(0, cores)


def _outcome(future: Future[_T]) -> _T | str:
    """The result, or the reason why there is none: nothing in a directory may end the engine."""
    error = future.exception()
    if error is None:
        return future.result()
    return str(error) if isinstance(error, HaganeError) else f"it cannot be loaded: {error!r}"
