"""One life of an engine process: from its launch to its end, which may have to be forced.

An engine reports at least a heartbeat between its steps. One that stays silent for its `timeout`
hangs: it is killed. Silence is counted in short pauses, so that a server that was itself stopped
for a while does not blame its engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from hagane.pool.channel import ClientChannel, MalformedMessage
from hagane.pool.launch import Launched
from hagane.pool.messages import EngineConfig, EngineReady, FromEngine, Shutdown, ToEngine

EndReason = Literal["exited", "killed", "hung", "garbled"]

# A start takes its time: imports, weights, buffers. Each reported stage starts the count again.
_LOADING_TIMEOUTS = 20
_LONGEST_PAUSE_SECONDS = 1.0
_REAP_SECONDS = 5.0


@dataclass(frozen=True)
class Ending:
    """How a process ended: by an exit or signal of its own, or killed as it hung or talked rubbish.

    `exit_code` is negative for signals.
    """

    reason: EndReason
    exit_code: int

    def __str__(self) -> str:
        if self.reason == "hung":
            return "it did not answer and was killed"
        if self.reason == "garbled":
            return "it sent what cannot be read and was killed"
        if self.reason == "killed":
            return f"signal {-self.exit_code} ({signal.Signals(-self.exit_code).name})"
        return f"exit status {self.exit_code}"


class EngineConnection(Protocol):
    """An engine as its client sees it: what is sent to it, and all that it reports in its life."""

    def send(self, message: ToEngine) -> None:
        """Send a message; an engine that has ended loses it."""

    async def run(self, receive: Callable[[FromEngine], None]) -> Ending:
        """Pass on messages until the engine ends."""

    async def stop(self, grace: float) -> None:
        """Have it end after its step, or within `grace` seconds."""


Connect = Callable[[EngineConfig], Awaitable[EngineConnection]]
"""Finds or makes an engine that is elsewhere; raises HaganeError."""


class EngineProcess:
    """A launched engine. `run` is its whole life; everything else is for meanwhile."""

    def __init__(self, launched: Launched, channel: ClientChannel, timeout: float) -> None:
        self._process, self._channel = launched.process, channel
        self._timeout = timeout
        self._messages = 0
        self._ready = self._garbled = False

    @classmethod
    async def open(cls, launched: Launched, timeout: float) -> EngineProcess:
        """Take over a launched process; it hangs if it is silent for `timeout` seconds."""
        try:
            return cls(launched, await ClientChannel.open(launched.connection), timeout)
        except BaseException:
            launched.connection.close()  # ends it
            raise

    def send(self, message: ToEngine) -> None:
        """Send a message; one that has ended loses it."""
        self._channel.send(message)

    async def run(self, receive: Callable[[FromEngine], None]) -> Ending:
        """Pass on messages until the process ends, which it has when this returns or raises."""
        reading = asyncio.create_task(self._read(receive))
        hung = False
        try:
            hung = await self._hangs(reading)
            if not hung:
                await reading
        finally:
            reading.cancel()
            self._channel.close()
            code = await self._reap(kill=hung or self._garbled)
        if hung:
            return Ending("hung", code)
        if self._garbled:
            return Ending("garbled", code)
        return Ending("killed" if code < 0 else "exited", code)

    async def stop(self, grace: float) -> None:
        """Have it end after its step, or kill it after `grace` seconds; it has ended then."""
        self._channel.send(Shutdown())
        try:
            async with asyncio.timeout(grace):
                await asyncio.to_thread(self._process.wait)
        except TimeoutError:
            self._process.kill()
            # Giving its memory back takes a while on a busy machine.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REAP_SECONDS):
                    await asyncio.to_thread(self._process.wait)

    async def _read(self, receive: Callable[[FromEngine], None]) -> None:
        async for message in self._channel.messages():
            self._messages += 1
            if isinstance(message, MalformedMessage):
                self._garbled = True
                return
            self._ready = self._ready or isinstance(message, EngineReady)
            receive(message)

    async def _hangs(self, reading: asyncio.Task[None]) -> bool:
        """Wait for the end of `reading`; True as soon as the silence has lasted too long."""
        pause = min(_LONGEST_PAUSE_SECONDS, self._timeout / 4)
        silent, messages = 0.0, self._messages
        while not reading.done():
            await asyncio.wait({reading}, timeout=pause)
            silent = silent + pause if messages == self._messages else 0.0
            messages = self._messages
            if silent >= self._timeout * (1 if self._ready else _LOADING_TIMEOUTS):
                return True
        return False

    async def _reap(self, kill: bool) -> int:
        """An engine whose channel is closed has nothing left to do."""
        if not kill:
            with contextlib.suppress(TimeoutError):
                # Not `wait_for`, which may swallow a cancellation in Python 3.11.
                async with asyncio.timeout(_REAP_SECONDS):
                    await asyncio.to_thread(self._process.wait)
        self._process.kill()  # does nothing to one that has ended
        return await asyncio.to_thread(self._process.wait)
