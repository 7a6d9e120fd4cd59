"""The API's only door to an engine: starts it, restarts it, and routes tokens back.

States: `starting` -> `ready` -> (the process dies) `restarting` -> `ready`; `failed` when the
engine reports that only the user can fix it; `draining` while the last streams finish, `stopped`
at the end.

A restart after a crash follows at once: a client whose request crashes the engine costs the
others its load time and no more. Pauses grow only while engines die before they take requests, or
idle within seconds of that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal

from hagane.pool.crashes import CrashHistory
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
    Loading,
    LogLines,
    RequestFailed,
    StepOutput,
    TokenDelta,
    UnloadAdapter,
)
from hagane.pool.process import Connect, Ending, EngineConnection, EngineProcess
from hagane.system.errors import (
    DeadlineExceededError,
    EngineCrashedError,
    EngineUnavailableError,
    HaganeError,
    InvalidRequestError,
    ModelError,
    QueueFullError,
)
from hagane.system.logging import recent_lines
from hagane.system.loops import BackgroundLoop, Backoff, Changes

logger = logging.getLogger(__name__)

State = Literal["starting", "ready", "restarting", "failed", "draining", "stopped"]

# An engine that lived this long, or had requests, did not die of its start.
_HEALTHY_SECONDS = 10.0
# An engine that dies so often before it takes requests will not start by trying on.
_MOST_FAILED_STARTS = 3


@dataclass(eq=False)
class _Stream:
    """A request in flight, and what came back for it and was not read yet."""

    request: GenerateRequest
    received: asyncio.Queue[TokenDelta | HaganeError] = field(default_factory=asyncio.Queue)


class EngineClient:
    """Owns the engine process and the streams that wait for its tokens.

    `launched` is the first one, where it is under way already with this `config`. With `connect`
    engines are elsewhere, and this client starts none.
    """

    def __init__(
        self,
        config: EngineConfig,
        launched: Launched | None = None,
        connect: Connect | None = None,
    ) -> None:
        self.config = config
        self._launched, self._connect = launched, connect
        self.state: State = "stopped"
        self.info: EngineReady | None = None
        self.failure: EngineFailed | None = None
        self.stats = EngineStats()
        self.restarts = 0
        self.crashes = CrashHistory()
        self.supervision = BackgroundLoop("engine supervision", self._live_once)
        self._changes = Changes()
        self._backoff = Backoff()
        self._process: EngineConnection | None = None
        self._streams: dict[str, _Stream] = {}
        self._checks: dict[str, asyncio.Future[str | None]] = {}
        self._adapters_in_use: Counter[str] = Counter()

    async def start(self) -> None:
        """Start the engine process in the background; watch `state` for the outcome."""
        self.state = "starting"
        self.supervision.start()

    async def reach(self, *states: State) -> State:
        """Wait for one of `states`; returns which."""
        await self._changes.wait_for(lambda: self.state in states)
        return self.state

    async def ready(self) -> EngineReady:
        """Wait until the engine takes requests. Raises HaganeError if it cannot start."""
        last = self.restarts + _MOST_FAILED_STARTS
        await self._changes.wait_for(
            lambda: (
                self.info is not None
                or self.state in ("failed", "stopped")
                or self.restarts >= last
            )
        )
        if self.info is not None:
            return self.info
        if self.failure is not None:
            raise HaganeError(self.failure.message)
        if self.state == "stopped":
            raise EngineUnavailableError("The engine was stopped.")
        raise HaganeError(
            f"The engine process died {_MOST_FAILED_STARTS} times while it started; the "
            "log has details."
        )

    async def drain(self, grace: float) -> None:
        """Take no more requests and wait for the running ones.

        Those that are not done after `grace` seconds, or when this is cancelled, get an error.
        """
        self._become("draining")
        try:
            async with asyncio.timeout(grace):
                await self._changes.wait_for(lambda: not self._streams)
        except TimeoutError:
            pass
        finally:
            self._fail_streams(
                EngineUnavailableError("The server shut down before this request was done.")
            )

    async def stop(self, grace: float) -> None:
        """End the engine, killing it after `grace` seconds. Streams still open get an error."""
        self._become("stopped")
        if self._process is not None:
            await self._process.stop(grace)
        await self.supervision.stop()
        self._fail_streams(EngineUnavailableError("The server is shutting down."))

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenDelta, None]:
        """Deltas of all continuations until each has finished; closing the generator cancels.

        Raises EngineUnavailableError, QueueFullError, DeadlineExceededError, or
        EngineCrashedError when the engine dies on the way.
        """
        process = self._ready_process()
        adapter = request.adapter.digest if request.adapter else ""
        self._adapters_in_use[adapter] += 1
        stream = self._streams[request.request_id] = _Stream(request)
        process.send(request)
        unfinished = request.n
        try:
            while unfinished:
                item = await stream.received.get()
                if isinstance(item, HaganeError):
                    unfinished = 0
                    raise item
                unfinished -= item.finish_reason is not None
                yield item
        finally:
            del self._streams[request.request_id]
            self._adapters_in_use[adapter] -= 1
            self._changes.notify()
            if unfinished:
                process.send(CancelRequest(request.request_id))

    async def check_adapter(self, adapter: AdapterRef) -> None:
        """Have the engine read it, and load it if there is room.

        Raises ModelError if it does not fit the model, EngineUnavailableError, or
        EngineCrashedError.
        """
        process = self._ready_process()
        answer = self._checks.get(adapter.digest)
        if answer is None:
            answer = self._checks[adapter.digest] = asyncio.get_running_loop().create_future()
            process.send(CheckAdapter(adapter))
        # Shielded: others may wait for the same answer when one of them is cancelled.
        error = await asyncio.shield(answer)
        if error is not None:
            raise ModelError(error)

    async def unload_adapter(self, digest: str) -> None:
        """Wait for the requests that use it, then free its memory."""
        await self._changes.wait_for(lambda: not self._adapters_in_use[digest])
        self.release_adapter(digest)

    def release_adapter(self, digest: str) -> None:
        """Have the engine free its memory as soon as no request uses it."""
        if self._process is not None:
            self._process.send(UnloadAdapter(digest))

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """Stop one continuation (or all); no further delta with a finish reason follows for it."""
        if self._process is not None:
            self._process.send(CancelRequest(request_id, index))

    def _ready_process(self) -> EngineConnection:
        if self.state != "ready" or self._process is None:
            raise EngineUnavailableError(
                f"The engine is {self.state}; try again in a moment.", retry_after=1.0
            )
        return self._process

    def _become(self, state: State) -> None:
        self.state = state
        self._changes.notify()

    async def _live_once(self) -> float:
        """One life of the engine process; returns the pause before the next."""
        started = time.monotonic()
        try:
            self._process = await self._open()
            ending = await self._process.run(self._route)
        except Exception:
            self.restarts += 1
            raise
        finally:
            in_flight = [stream.request for stream in self._streams.values()]
            was_ready, self.info = self.info is not None, None
            self._process, self.stats = None, EngineStats()
            if self.state in ("starting", "ready"):
                self._become("restarting")
            self._fail_streams(
                EngineCrashedError("The engine stopped while this request ran. Send it again.")
            )
        if self.state in ("failed", "draining", "stopped"):
            # Nothing more to supervise: `stop` ends the loop.
            await asyncio.Event().wait()
        return self._restart(ending, in_flight, was_ready, time.monotonic() - started)

    async def _open(self) -> EngineConnection:
        if self._connect is not None:
            return await self._connect(self.config)
        launched, self._launched = self._launched or launch(self.config), None
        return await EngineProcess.open(launched, self.config.timeout)

    def _restart(
        self, ending: Ending, in_flight: list[GenerateRequest], was_ready: bool, lived: float
    ) -> float:
        """Note a crash; returns the pause before the next start."""
        self.crashes.record(ending, in_flight)
        self.restarts += 1
        self._become("restarting")
        if was_ready and (in_flight or lived > _HEALTHY_SECONDS):
            self._backoff.reset()
        pause = self._backoff.next()
        logger.error("restarting the engine in %.2f s", pause)
        return pause

    def _route(self, message: FromEngine) -> None:
        match message:
            case StepOutput():
                self.stats = message.stats
                for delta in message.deltas:
                    if (stream := self._streams.get(delta.request_id)) is not None:
                        stream.received.put_nowait(delta)
                for failure in message.failures:
                    if (stream := self._streams.get(failure.request_id)) is not None:
                        stream.received.put_nowait(_error(failure, stream.request))
            case EngineReady():
                self.info = message
                # One that gets ready while the server ends changes nothing about that.
                if self.state in ("starting", "restarting"):
                    self._become("ready")
            case EngineFailed():
                self.failure = message
                self._become("failed")
            case AdapterChecked():
                if (answer := self._checks.pop(message.digest, None)) is not None:
                    answer.set_result(message.error)
            case LogLines():
                recent_lines().add(message.lines)
            case Loading():
                logger.debug("the engine loads: %s", message.stage)
            case _:
                pass  # a heartbeat

    def _fail_streams(self, error: HaganeError) -> None:
        for answer in self._checks.values():
            answer.set_exception(error)
        self._checks.clear()
        for stream in self._streams.values():
            stream.received.put_nowait(error)


def _error(failure: RequestFailed, request: GenerateRequest) -> HaganeError:
    if failure.code == "queue_full":
        return QueueFullError(failure.message, retry_after=1.0)
    if failure.code == "deadline_exceeded":
        return DeadlineExceededError(failure.message)
    if failure.code == "invalid_request":
        # A grammar that cannot be followed: engines refuse nothing else of a request that has one.
        param = request.grammar.param if request.grammar is not None else None
        return InvalidRequestError(failure.message, param=param)
    if failure.code == "engine_crashed":
        return EngineCrashedError(failure.message)
    if failure.code == "engine_unavailable":
        return EngineUnavailableError(failure.message)
    if failure.code == "adapter_error":
        return ModelError(failure.message)
    return HaganeError(failure.message)
