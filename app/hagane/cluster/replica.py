"""One replica of a model: an engine process with its client, and how requests reach it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import msgspec

from hagane.cluster.connection import ReplicaReport
from hagane.cluster.wire import Outcome
from hagane.pool.client import EngineClient
from hagane.pool.messages import (
    AdapterChecked,
    AdapterRef,
    CheckAdapter,
    EngineConfig,
    FailureCode,
    GenerateRequest,
    RequestFailed,
)
from hagane.store.adapters import SharedAdapters
from hagane.system.errors import (
    DeadlineExceededError,
    EngineCrashedError,
    EngineUnavailableError,
    HaganeError,
    InvalidRequestError,
    ModelError,
    QueueFullError,
)

# Restarting an engine takes as long as its model loads.
_UNHEALTHY_SECONDS = 120.0
_CODES: tuple[tuple[type[HaganeError], FailureCode], ...] = (
    (DeadlineExceededError, "deadline_exceeded"),
    (QueueFullError, "queue_full"),
    (EngineCrashedError, "engine_crashed"),
    (EngineUnavailableError, "engine_unavailable"),
    (InvalidRequestError, "invalid_request"),
    (ModelError, "adapter_error"),
)


class EngineReplica:
    """An engine on this machine, under `name` among the replicas.

    With `adapters`, those that servers share are fetched here; else they are read where the request
    says they lie.
    """

    def __init__(
        self, name: str, config: EngineConfig, adapters: SharedAdapters | None = None
    ) -> None:
        self.name = name
        self._client = EngineClient(config)
        self._adapters = adapters
        self._ready_at = time.monotonic()

    async def start(self) -> None:
        """Start the engine and wait until it takes requests. Raises HaganeError."""
        await self._client.start()
        await self._client.ready()

    async def stop(self, grace: float = 5.0) -> None:
        """End the engine."""
        await self._client.stop(grace)

    async def generate(
        self, request: GenerateRequest, seconds: float | None
    ) -> AsyncGenerator[Outcome, None]:
        """The outcomes of a request that may take `seconds`; closing it cancels."""
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            adapter = request.adapter and await asyncio.to_thread(self._local, request.adapter)
            own = msgspec.structs.replace(request, deadline=deadline, adapter=adapter)
            async with aclosing(self._client.generate(own)) as deltas:
                async for delta in deltas:
                    yield Outcome((delta,))
        except HaganeError as error:
            yield Outcome(failures=(RequestFailed(request.request_id, _code(error), str(error)),))

    def cancel(self, request_id: str, index: int) -> None:
        """Stop one continuation of a request; no delta with a finish reason follows for it."""
        self._client.cancel(request_id, index)

    def report(self, queued_tokens: int = 0) -> ReplicaReport:
        """What the server's edge shows of this replica. Raises EngineUnavailableError."""
        ready = self._client.info
        if ready is None:
            raise EngineUnavailableError("The engine is restarting.")
        return ReplicaReport(self.name, ready, self._client.stats, queued_tokens)

    async def check_adapter(self, request: CheckAdapter) -> AdapterChecked:
        """Read an adapter, which shows whether it fits the model."""
        try:
            local = await asyncio.to_thread(self._local, request.adapter)
            await self._client.check_adapter(local)
        except HaganeError as error:
            return AdapterChecked(request.adapter.digest, str(error))
        return AdapterChecked(request.adapter.digest)

    def require_health(self) -> None:
        """Raises HaganeError where the engine will not come back by itself."""
        state = self._client.state
        if state == "ready":
            self._ready_at = time.monotonic()
        if state == "failed" or time.monotonic() - self._ready_at > _UNHEALTHY_SECONDS:
            raise EngineUnavailableError(f"The engine is {state}.")

    def _local(self, adapter: AdapterRef) -> AdapterRef:
        if self._adapters is None:
            return adapter
        # Of the same machine's cache, if the server's edge is on it, too.
        path = Path(adapter.directory)
        if path.name != adapter.digest or not path.is_dir():
            path = self._adapters.fetch(adapter.digest)
        return msgspec.structs.replace(adapter, directory=str(path))


def _code(error: HaganeError) -> FailureCode:
    return next((code for kind, code in _CODES if isinstance(error, kind)), "engine_error")
