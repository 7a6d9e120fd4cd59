"""The HTTP server's end: first no new requests, then no streams, then no server."""

from __future__ import annotations

import asyncio
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app.api.serving import Serving
from app.settings import Settings


class DrainingServer(uvicorn.Server):
    """Answers 503 to new requests after the first signal, until running ones have finished.

    What still runs after the grace, or at a second signal, ends with an error event. Connections
    are accepted all the while, so that a load balancer is told rather than refused.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=max(1, round(settings.shutdown_grace)),
            )
        )
        self._app = app
        self._grace = settings.shutdown_grace
        self._drain: asyncio.Task[None] | None = None

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
            await serving.client.drain(self._grace)
        finally:
            super().handle_exit(sig, frame)
