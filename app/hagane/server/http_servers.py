"""The HTTP servers: how the common one ends, and the separate one for admins."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from hagane.api.serving import Serving
from hagane.server.listening import listen
from hagane.server.pacing import Pacer
from hagane.server.protocol import BoundedProtocol, ConnectionBounds
from hagane.system.settings import Settings

# The event loop gives the interpreter's lock up at every system call, some ten times for a request,
# and while a thread computes it gets the lock back after this long. Python's own 5 ms add up.
_SWITCH_SECONDS = 0.0005


def _config(app: FastAPI, settings: Settings, **options: Any) -> uvicorn.Config:
    """Settings of both listeners: bounds, and no features that the server does not need."""
    protocol = partial(BoundedProtocol, bounds=ConnectionBounds.of(settings), pacer=Pacer())
    return uvicorn.Config(
        app,
        http=protocol,  # type: ignore[arg-type]
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        **options,
    )


class DrainingServer(uvicorn.Server):
    """Answers 503 to new requests after the first signal, until running ones have finished.

    Streams still open after the grace, or at a second signal, end with an error event. Connections
    are accepted all the while: a load balancer gets an answer, not a refused connection.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            _config(
                app,
                settings,
                host=settings.host,
                port=settings.port,
                timeout_graceful_shutdown=max(1, round(settings.shutdown_grace)),
            )
        )
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._app = app
        self._grace = settings.shutdown_grace
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # All objects made so far stay: the collector need not walk over it for tens of milliseconds
        # whenever a body of many values has come.
        gc.freeze()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A terminal that closes ends the server as Ctrl-C does, unless `nohup` forbids it."""
        before = signal.getsignal(signal.SIGHUP)
        if before is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self.handle_exit)
        with super().capture_signals():
            yield
        signal.signal(signal.SIGHUP, before)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called between two instructions of the event loop's thread."""
        if not self.started:
            super().handle_exit(sig, frame)
        elif self._drain is None:
            loop = asyncio.get_event_loop()
            self._drain = loop.create_task(self._finish(sig, frame))
            # The loop may be asleep in its selector, which a signal does not wake by itself.
            loop.call_soon_threadsafe(lambda: None)
        else:
            self._drain.cancel()

    async def _finish(self, sig: int, frame: FrameType | None) -> None:
        serving: Serving = self._app.state.serving
        try:
            await serving.fleet.drain(self._grace)
        finally:
            super().handle_exit(sig, frame)


class AdminListener(uvicorn.Server):
    """A second listener in the same process, alive as long as the first one."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            _config(
                app,
                settings,
                host=settings.admin_host,
                port=settings.admin_port or 0,
                lifespan="off",
                timeout_graceful_shutdown=1,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the first server's."""
        yield

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen until the context is left. Raises ConfigurationError for an address in use."""
        sockets = listen(self.config.host, self.config.port, "admin_port")
        serving = asyncio.create_task(self.serve(sockets))
        try:
            yield
        finally:
            self.should_exit = True
            await serving
