"""What happens to every request: its id, its line in the log, its body's bound."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Collection

from opentelemetry import trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hagane.api.errors import error_body
from hagane.api.metrics import Metrics
from hagane.system.logging import request_id

logger = logging.getLogger(__name__)

_VALID_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class RequestContext:
    """Takes X-Request-Id from the client or makes one; puts it in logs, traces and the answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        identity = given if _VALID_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        request_id.set(identity)
        trace.get_current_span().set_attribute("hagane.request_id", identity)
        started = time.monotonic()
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", identity.encode()),
                    *_extra_headers(scope),
                ]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            self.metrics.http_requests.labels(scope["method"], route, str(status)).inc()
            if not asked_by_machines(scope):
                _log(scope, status, time.monotonic() - started)


def asked_by_machines(scope: Scope) -> bool:
    """Whether a request comes every few seconds: such are neither logged nor traced."""
    path: str = scope["path"]
    return path.startswith(("/health/", "/metrics"))


def _log(scope: Scope, status: int, seconds: float) -> None:
    # The path as it was sent: decoded, it may hold line breaks.
    path = scope.get("raw_path", b"").decode("latin-1")
    text = f"{scope['method']} {path} {status} in {seconds:.3f} s"
    fields = {"method": scope["method"], "path": path, "status": status, "seconds": seconds}
    logger.info(text, extra={"fields": fields})


def _extra_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    """What a dependency left in `request.state.headers` for the answer, whatever comes of it."""
    headers: dict[str, str] = scope.get("state", {}).get("headers", {})
    return [(name.encode(), value.encode()) for name, value in headers.items()]


class BodyLimit:
    """Refuses bodies over a number of bytes with 413, also those of undeclared length.

    Routes on the paths `streaming` read their body piece by piece and have a bound of their own.
    """

    def __init__(self, app: ASGIApp, limit: int, streaming: Collection[str] = ()) -> None:
        self.app = app
        self.limit = limit
        self.streaming = streaming

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        unbounded = scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS")
        if unbounded or scope["path"] in self.streaming:
            await self.app(scope, receive, send)
            return
        chunks: list[bytes] = []
        size = 0
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            more = message.get("more_body", False)
            if size > self.limit:
                await self._refuse(send)
                return
        body: bytes | None = b"".join(chunks)

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            whole, body = body, None
            return {"type": "http.request", "body": whole, "more_body": False}

        await self.app(scope, replay, send)

    async def _refuse(self, send: Send) -> None:
        text = f"The request body is larger than {self.limit} bytes (max_body_bytes)."
        body = json.dumps(
            error_body(text, "invalid_request_error", None, "request_too_large")
        ).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})
