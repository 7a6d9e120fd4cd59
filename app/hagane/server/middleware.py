"""Middleware of every request: its id, its line in the log, its faults, its host, its end."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid

from fastapi.responses import JSONResponse
from opentelemetry import trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hagane.api.errors import error_body, unforeseen
from hagane.api.metrics import Metrics
from hagane.server.hosts import AllowedHosts
from hagane.system.logging import request_id

logger = logging.getLogger(__name__)

_VALID_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
# The status that nginx logs for a client that went away: no fault of the server, and in no alert.
_CLIENT_GONE = 499
# Rests of bodies up to here are read so that the connection can be used again.
_SMALL_REST = 64 << 10
_REST_SECONDS = 0.05
# For a client to read why its body was refused, while what it still sends is dropped.
_LINGER_SECONDS = 2.0


class RequestContext:
    """Takes X-Request-Id from the client or makes one; puts it in logs, traces and the answer.

    A request that meets a fault of this program is answered with 500, and its connection lives on:
    what a pool of connections sends next must not fail by it.
    """

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
        # Nothing was answered: the client hung up, or the server ends.
        status = _CLIENT_GONE

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
        except Exception:
            if status != _CLIENT_GONE:
                # An answer that has begun can only be cut off, by the server.
                raise
            logger.exception("unforeseen error")
            await unforeseen(scope["path"])(scope, receive, send_with_id)
        finally:
            self.metrics.http_requests.labels(scope["method"], _route(scope), str(status)).inc()
            if not asked_by_machines(scope):
                _log(scope, status, time.monotonic() - started)


def asked_by_machines(scope: Scope) -> bool:
    """Whether a request comes every few seconds: such are neither logged nor traced."""
    path: str = scope["path"]
    return path.startswith(("/health/", "/metrics"))


def _route(scope: Scope) -> str:
    """The route's pattern, the folder of a static file, or nothing that grows with requests."""
    if (route := scope.get("route")) is not None:
        return str(route.path)
    return f"{scope['root_path']}/..." if scope.get("root_path") else "unmatched"


def _log(scope: Scope, status: int, seconds: float) -> None:
    # The path as it was sent: decoded, it may hold line breaks.
    path = scope.get("raw_path", b"").decode("latin-1")
    text = f"{scope['method']} {path} {status} in {seconds:.3f} s"
    fields = {"method": scope["method"], "path": path, "status": status, "seconds": seconds}
    logger.info(text, extra={"fields": fields})


def _extra_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    """Headers that a dependency left in `request.state.headers`, for any answer."""
    headers: dict[str, str] = scope.get("state", {}).get("headers", {})
    return [(name.encode(), value.encode()) for name, value in headers.items()]


class HostGuard:
    """Refuses requests for hosts that this server does not go by."""

    def __init__(self, app: ASGIApp, hosts: AllowedHosts) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        host = dict(scope["headers"]).get(b"host")
        # HTTP/1.0 needs none; browsers always send one.
        if host is None or host.decode("latin-1") in self.hosts:
            await self.app(scope, receive, send)
            return
        text = (
            f"This server does not go by the name {host.decode('latin-1')[:200]!r}: add it to "
            "allowed_hosts (HAGANE_ALLOWED_HOSTS)."
        )
        body = error_body(text, "invalid_request_error", None, "host_not_allowed")
        await JSONResponse(body, 403)(scope, receive, send)


class LingeringClose:
    """Ends connections whose request was answered before its body had come, without losing that.

    The rest would be taken for the next request, or be read for nothing. A short rest is read; for
    a long one the answer has `connection: close`, and the connection is closed when the client has
    had time to read it: closing at once resets it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self.app(scope, receive, send)
            return
        pending, closing = True, False

        async def watch() -> Message:
            nonlocal pending
            message = await receive()
            pending = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def read_rest(limit: int, seconds: float) -> None:
            try:
                async with asyncio.timeout(seconds):
                    while pending and limit > 0:
                        limit -= len((await watch()).get("body", b""))
            except TimeoutError:
                pass

        async def send_then_close(message: Message) -> None:
            nonlocal closing
            if message["type"] == "http.response.start" and pending:
                if not _is_long(scope):
                    await read_rest(_SMALL_REST, _REST_SECONDS)
                if closing := pending:
                    message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if not (closing and last):
                await send(message)
                return
            await send({**message, "more_body": True})
            await read_rest(1 << 40, _LINGER_SECONDS)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self.app(scope, watch, send_then_close)


def _has_body(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


def _is_long(scope: Scope) -> bool:
    """Whether more is to come than is worth reading, or the client waits for a 100 Continue."""
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"0")
    return b"expect" in headers or (length.isdigit() and int(length) > _SMALL_REST)
