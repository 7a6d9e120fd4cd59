"""Remembers answers: which ones there were lately, and in full those that a client has stored.

Answers to store wait in a queue until a thread writes them, many in one transaction. Streams
wait neither for the disk nor for the writing of JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge

from hagane.api.schemas import ChatBody
from hagane.store.answers.answers import Answers
from hagane.store.answers.completions import StorageBounds
from hagane.store.catalogue import ModelRef
from hagane.system.loops import BackgroundLoop, Changes

logger = logging.getLogger(__name__)

# Feedback finds the model of an answer that was not stored among so many latest ones.
_REMEMBERED = 1 << 16
_MOST_WAITING_BYTES = 64 << 20
_ROWS_AT_A_TIME = 64
_FLUSH_SECONDS = 5.0
_EXPIRE_SECONDS = 600.0
# In memory alone, where there is no data directory.
_MOST_BYTES_IN_MEMORY = 64 << 20


@dataclass(frozen=True)
class Origin:
    """Where an answer came from: whose key and end user, which model, by which arm of an alias."""

    key: str
    user: str | None
    model: str
    alias: str | None
    arm: str | None

    @classmethod
    def of(cls, ref: ModelRef, key: str, user: str | None) -> Origin:
        """The origin of an answer of `served`."""
        return cls(key, user, ref.id, ref.alias, ref.arm)


@dataclass(frozen=True, eq=False)
class _Waiting:
    body: ChatBody
    response: dict[str, Any]
    origin: Origin
    size: int


class AnswerLog:
    """The answers of one application. All methods belong to the event loop.

    Waiting answers are written from `start` to `stop`. So long, chats go that nobody has changed
    for `chats_seconds`, as completions do beyond `bounds`.
    """

    def __init__(
        self,
        answers: Answers,
        bounds: StorageBounds,
        registry: CollectorRegistry,
        *,
        durable: bool,
        chats_seconds: float,
    ) -> None:
        self._answers = answers
        self._chats_seconds = chats_seconds
        self._bounds = bounds
        if not durable:
            most = min(bounds.most_bytes, _MOST_BYTES_IN_MEMORY)
            self._bounds = StorageBounds(most, bounds.seconds)
        self._recent: OrderedDict[str, Origin] = OrderedDict()
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._changes = Changes()
        self._writer = BackgroundLoop("stored completions", self._write)
        self.loops = (self._writer, BackgroundLoop("expiry of completions and chats", self._expire))
        self._stored = Counter(
            "hagane_stored_completions", "Completions written to the store", registry=registry
        )
        self._lost = Counter(
            "hagane_stored_completions_lost",
            "Completions that could not be stored",
            ["reason"],
            registry=registry,
        )
        self._deleted = Counter(
            "hagane_stored_completions_expired",
            "Stored completions deleted for their age or for room",
            registry=registry,
        )
        size = Gauge(
            "hagane_stored_completion_bytes", "Bytes of stored completions", registry=registry
        )
        size.set_function(lambda: answers.completions.bytes)

    def note(self, completion_id: str, origin: Origin) -> None:
        """Remember that an answer began."""
        self._recent[completion_id] = origin
        if len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)

    def origin(self, completion_id: str) -> Origin | None:
        """The origin of one of the latest answers, stored or not."""
        return self._recent.get(completion_id)

    def keep(self, body: ChatBody, response: dict[str, Any], origin: Origin, size: int) -> None:
        """Store the complete answer `response` to `body`; both have about `size` bytes."""
        if self._waiting_bytes + size > _MOST_WAITING_BYTES:
            self._lost.labels("queue_full").inc()
            logger.warning("%s is not stored: too many others wait", response["id"])
            return
        self._waiting.append(_Waiting(body, response, origin, size))
        self._waiting_bytes += size
        self._changes.notify()

    def start(self) -> None:
        """Begin to write what waits."""
        for loop in self.loops:
            loop.start()

    async def flush(self) -> None:
        """Wait until what waits now is written, for some seconds at most."""
        last = self._waiting[-1] if self._waiting else None
        if last is None:
            return
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                await self._changes.wait_for(lambda: last not in self._waiting)
        except TimeoutError:
            logger.warning("stored completions are not written in time")

    async def stop(self) -> None:
        """Write the rest and end."""
        if self._writer.running:
            await self.flush()
        await asyncio.gather(*(loop.stop() for loop in self.loops))

    async def _write(self) -> float:
        """One round: as many as wait, in one transaction; they stay in the queue if it fails."""
        await self._changes.wait_for(lambda: bool(self._waiting))
        batch = [self._waiting[i] for i in range(min(len(self._waiting), _ROWS_AT_A_TIME))]
        written, deleted = await asyncio.to_thread(self._add, batch)
        for waiting in batch:
            self._waiting.popleft()
            self._waiting_bytes -= waiting.size
        self._stored.inc(written)
        self._lost.labels("unwritable").inc(len(batch) - written)
        self._deleted.inc(deleted)
        self._changes.notify()
        return 0.0

    def _add(self, batch: list[_Waiting]) -> tuple[int, int]:
        rows = [row for waiting in batch if (row := _row(waiting)) is not None]
        return len(rows), self._answers.completions.add(rows, self._bounds)

    async def _expire(self) -> float:
        """One round: what is too old goes, also while nothing new comes."""
        completions = self._answers.completions
        deleted = await asyncio.to_thread(completions.add, [], self._bounds)
        self._deleted.inc(deleted)
        since = time.time() - self._chats_seconds
        await asyncio.to_thread(self._answers.chats.expire, since)
        return _EXPIRE_SECONDS


def _row(waiting: _Waiting) -> dict[str, Any] | None:
    """The row of one completion; None where it cannot be written as JSON."""
    body, origin = waiting.body, waiting.origin
    try:
        request = body.model_dump(mode="json", exclude_unset=True, exclude={"metadata", "store"})
        written = msgspec.json.encode(request).decode()
        response = msgspec.json.encode(waiting.response).decode()
    except (TypeError, ValueError) as error:
        logger.warning("%s is not stored: %s", waiting.response["id"], error)
        return None
    return {
        **vars(origin),
        "id": waiting.response["id"],
        "created_at": waiting.response["created"],
        "conversation": conversation_of(request["messages"]),
        "metadata": body.metadata or {},
        "request": written,
        "response": response,
        "bytes": len(written) + len(response),
    }


def conversation_of(messages: list[dict[str, Any]]) -> str:
    """A hash of how a conversation begins, up to its first user message: later turns share it."""
    beginning = []
    for message in messages:
        beginning.append([message["role"], message["content"]])
        if message["role"] == "user":
            break
    return hashlib.sha256(json.dumps(beginning).encode()).hexdigest()[:16]
