"""The API's only door to the engine: starts it, restarts it, and routes tokens back.

States: `starting` -> `ready` -> (the process dies) `restarting` -> `ready`; `failed` when the
engine says that only the user can mend it; `draining` while the last streams finish, `stopped`
at the end.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import time
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Literal

from hagane.pool.channel import ClientChannel, MalformedMessage
from hagane.pool.launch import Launched, launch
from hagane.pool.messages import (
    AdapterChecked,
    AdapterRef,
    CancelRequest,
    CheckAdapter,
    EngineConfig,
    EngineFailed,
    EngineReady,
    EngineStats,
    FromEngine,
    GenerateRequest,
    RequestFailed,
    Shutdown,
    StepOutput,
    TokenDelta,
    UnloadAdapter,
)
from hagane.system.errors import (
    DeadlineExceededError,
    EngineCrashedError,
    EngineUnavailableError,
    HaganeError,
    InvalidRequestError,
    ModelError,
    QueueFullError,
)

logger = logging.getLogger(__name__)

State = Literal["starting", "ready", "restarting", "failed", "draining", "stopped"]

_FIRST_BACKOFF_SECONDS = 0.25
_LONGEST_BACKOFF_SECONDS = 30.0
# An engine that lived this long was healthy: its death starts a new series of back-offs.
_HEALTHY_SECONDS = 60.0
_DRAIN_POLL_SECONDS = 0.05
_READY_POLL_SECONDS = 0.01
# An engine that dies so often before it takes requests will not start by trying on.
_MOST_FAILED_STARTS = 3


class EngineClient:
    """Owns the engine process and the streams that wait for its tokens.

    `launched` is the first one, where it is under way already.
    """

    def __init__(self, config: EngineConfig, launched: Launched | None = None) -> None:
        self.config = config
        self._launched = launched
        self.state: State = "stopped"
        self.info: EngineReady | None = None
        self.failure: EngineFailed | None = None
        self.stats = EngineStats()
        self.restarts = 0
        self._channel: ClientChannel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._streams: dict[str, asyncio.Queue[TokenDelta | HaganeError]] = {}
        self._checks: dict[str, asyncio.Future[str | None]] = {}
        self._adapters_in_use: Counter[str] = Counter()

    async def start(self) -> None:
        """Start the engine process in the background; watch `state` for the outcome."""
        self.state = "starting"
        self._supervision = asyncio.create_task(self._supervise(), name="engine-supervision")

    async def ready(self) -> EngineReady:
        """Wait until the engine takes requests. Raises HaganeError if it cannot start."""
        before = self.restarts
        while self.info is None:
            if self.failure is not None:
                raise HaganeError(self.failure.message)
            if self.state == "stopped":
                raise EngineUnavailableError("The engine was stopped.")
            if self.restarts >= before + _MOST_FAILED_STARTS:
                raise HaganeError(
                    f"The engine process died {_MOST_FAILED_STARTS} times while it started; the "
                    "log says more."
                )
            await asyncio.sleep(_READY_POLL_SECONDS)
        return self.info

    async def drain(self, grace: float) -> None:
        """Take no more requests and wait for the running ones.

        Those that are not done after `grace` seconds, or when this is cancelled, get an error.
        """
        self.state = "draining"
        deadline = time.monotonic() + grace
        try:
            while self._streams and time.monotonic() < deadline:
                await asyncio.sleep(_DRAIN_POLL_SECONDS)
        finally:
            self._fail_streams(
                EngineUnavailableError("The server shut down before this request was done.")
            )

    async def stop(self, grace: float) -> None:
        """End the engine, killing it after `grace` seconds. Streams still open get an error."""
        self.state = "stopped"
        if self._channel is not None:
            self._channel.send(Shutdown())
        if self._process is not None:
            try:
                await asyncio.wait_for(asyncio.to_thread(self._process.wait), grace)
            except TimeoutError:
                self._process.kill()
        if self._supervision is not None:
            self._supervision.cancel()
            await asyncio.gather(self._supervision, return_exceptions=True)
        self._fail_streams(EngineUnavailableError("The server is shutting down."))

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenDelta, None]:
        """Deltas of all continuations until each has finished; closing the generator cancels.

        Raises EngineUnavailableError, QueueFullError, DeadlineExceededError, or
        EngineCrashedError when the engine dies on the way.
        """
        channel = self._ready_channel()
        adapter = request.adapter.digest if request.adapter else ""
        self._adapters_in_use[adapter] += 1
        queue: asyncio.Queue[TokenDelta | HaganeError] = asyncio.Queue()
        self._streams[request.request_id] = queue
        channel.send(request)
        unfinished = request.n
        try:
            while unfinished:
                item = await queue.get()
                if isinstance(item, HaganeError):
                    unfinished = 0
                    raise item
                unfinished -= item.finish_reason is not None
                yield item
        finally:
            del self._streams[request.request_id]
            self._adapters_in_use[adapter] -= 1
            if unfinished:
                channel.send(CancelRequest(request.request_id))

    async def check_adapter(self, adapter: AdapterRef) -> None:
        """Have the engine read it, and load it if there is room.

        Raises ModelError if it does not fit the model, EngineUnavailableError, or
        EngineCrashedError.
        """
        channel = self._ready_channel()
        answer = self._checks.get(adapter.digest)
        if answer is None:
            answer = self._checks[adapter.digest] = asyncio.get_running_loop().create_future()
            channel.send(CheckAdapter(adapter))
        # Shielded: others may wait for the same answer when one of them is cancelled.
        error = await asyncio.shield(answer)
        if error is not None:
            raise ModelError(error)

    async def unload_adapter(self, digest: str) -> None:
        """Wait for the requests that use it, then free its memory."""
        while self._adapters_in_use[digest]:
            await asyncio.sleep(_DRAIN_POLL_SECONDS)
        self.release_adapter(digest)

    def release_adapter(self, digest: str) -> None:
        """Have the engine free its memory as soon as no request uses it."""
        if self._channel is not None:
            self._channel.send(UnloadAdapter(digest))

    def _ready_channel(self) -> ClientChannel:
        if self.state != "ready" or self._channel is None:
            raise EngineUnavailableError(
                f"The engine is {self.state}; try again in a moment.", retry_after=1.0
            )
        return self._channel

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """Stop one continuation (or all); no further delta with a finish reason follows for it."""
        if self._channel is not None:
            self._channel.send(CancelRequest(request_id, index))

    async def _supervise(self) -> None:
        backoff = _FIRST_BACKOFF_SECONDS
        while self.state != "stopped":
            started = time.monotonic()
            await self._run_once()
            self.info = None
            self.stats = EngineStats()
            if self.state in ("failed", "draining", "stopped"):
                return
            self.state = "restarting"
            self.restarts += 1
            if time.monotonic() - started > _HEALTHY_SECONDS:
                backoff = _FIRST_BACKOFF_SECONDS
            logger.error("the engine process died; restarting it in %.2f s", backoff)
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _LONGEST_BACKOFF_SECONDS)

    async def _run_once(self) -> None:
        """One life of the engine process, from its start to its end of file."""
        launched = self._launched or launch()
        self._launched, self._process = None, launched.process
        self._channel = await ClientChannel.open(launched.connection)
        try:
            self._channel.send(self.config)
            async for message in self._channel.messages():
                self._route(message)
        finally:
            self._channel.close()
            self._channel = None
            await self._reap(self._process)
            self._fail_streams(
                EngineCrashedError("The engine stopped while this request ran. Send it again.")
            )

    @staticmethod
    async def _reap(process: subprocess.Popen[bytes]) -> None:
        """An engine whose channel is closed has nothing left to do."""
        try:
            await asyncio.wait_for(asyncio.to_thread(process.wait), 5.0)
        except TimeoutError:
            pass
        finally:
            process.kill()  # does nothing to one that has ended
            await asyncio.to_thread(process.wait)

    def _route(self, message: FromEngine | MalformedMessage) -> None:
        if isinstance(message, StepOutput):
            self.stats = message.stats
            for delta in message.deltas:
                if (queue := self._streams.get(delta.request_id)) is not None:
                    queue.put_nowait(delta)
            for failure in message.failures:
                if (queue := self._streams.get(failure.request_id)) is not None:
                    queue.put_nowait(_error(failure))
        elif isinstance(message, EngineReady):
            self.info = message
            # One that gets ready while the server ends changes nothing about that.
            if self.state in ("starting", "restarting"):
                self.state = "ready"
        elif isinstance(message, AdapterChecked):
            if (answer := self._checks.pop(message.digest, None)) is not None:
                answer.set_result(message.error)
        elif isinstance(message, EngineFailed):
            self.failure = message
            self.state = "failed"
        elif isinstance(message, MalformedMessage):
            logger.error("the engine sent what cannot be read: %s", message.reason)

    def _fail_streams(self, error: HaganeError) -> None:
        for answer in self._checks.values():
            answer.set_exception(error)
        self._checks.clear()
        for queue in self._streams.values():
            queue.put_nowait(error)


def _error(failure: RequestFailed) -> HaganeError:
    if failure.code == "queue_full":
        return QueueFullError(failure.message, retry_after=1.0)
    if failure.code == "deadline_exceeded":
        return DeadlineExceededError(failure.message)
    if failure.code == "invalid_request":
        return InvalidRequestError(failure.message)
    if failure.code == "adapter_error":
        return ModelError(failure.message)
    return HaganeError(failure.message)
