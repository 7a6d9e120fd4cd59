"""HTTP/1.1 with bounds: what a peer may hold of the server before it has sent a whole request.

httptools refuses what could be read in two ways (two lengths, a length and chunks, bare line feeds,
folded headers); here is what it and uvicorn leave open: sizes, times and numbers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import socket
from collections import deque
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from hagane.api.errors import error_body
from hagane.server.pacing import PacedFlowControl, Pacer
from hagane.system.settings import Settings

logger = logging.getLogger(__name__)

_MOST_CONNECTIONS = 512
# Requests that wait for the one being answered: few clients send any.
_MOST_PIPELINED = 16
# Every piece of a body costs a call here; those of a real client are longer than this, on average.
_LEAST_PIECE_BYTES = 16
_FREE_PIECES = 4096
_WRITE_SECONDS = 60.0
# For a refused peer to read the reason, while what it still sends is dropped.
_LINGER_SECONDS = 2.0
# Of a body on the wire, what is neither its content nor as long as that: chunks' extensions.
_MOST_FRAMING_BYTES = 1 << 20
# Lengths of bodies have fewer; int() takes no more than 4300.
_MOST_LENGTH_DIGITS = 20
# An upgrade is never made, so the request is read as if it had not been offered.
_UPGRADE_HEADERS = (b"upgrade", b"connection", b"http2-settings")


@dataclass(frozen=True)
class ConnectionBounds:
    """Limits of one listener: connections at a time, bytes and seconds of a request's head.

    `write_seconds` is how long a peer may not read what it is sent before it is cut off.
    """

    connections: int
    header_bytes: int
    header_seconds: float
    write_seconds: float = _WRITE_SECONDS

    @classmethod
    def of(cls, settings: Settings) -> ConnectionBounds:
        connections = settings.max_connections
        if connections is None:
            # The rest is for files, the engine's socket and the connections that are refused.
            descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            connections = max(1, min(descriptors // 2, _MOST_CONNECTIONS))
        return cls(connections, int(settings.max_header_bytes), settings.header_timeout)


class _RefusedError(Exception):
    """Ends the parser's run; what to answer is in the protocol."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection. uvicorn makes one for each, given its own arguments, `bounds` and `pacer`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        bounds: ConnectionBounds,
        pacer: Pacer,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.bounds = bounds
        self._pacer = pacer
        # When it began to wait for a request's head; None while a request is being answered.
        self.waiting_since: float | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._refusal: tuple[HTTPStatus, str, str] | None = None
        self._refused = False
        # Requests that are being answered or wait for the one that is.
        self._unanswered: deque[RequestResponseCycle] = deque()
        self._in_head = False
        self._upgrade_offered = False
        self._head_bytes = 0
        self._pieces = 0
        self._body_bytes = 0
        self._wire_bytes = 0

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = PacedFlowControl(transport, self._pacer)
        _notice_dead_peers(transport, self.bounds.write_seconds)
        if len(self.connections) > self.bounds.connections and not self._make_room():
            self._refuse(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "too_many_connections",
                f"This server has {self.bounds.connections} connections (max_connections), each "
                "with a request on it. Try again in a moment.",
            )
            return
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._stop_keep_alive()
        was_in_head = self._in_head
        try:
            self._feed(data)
            if was_in_head and self._in_head:
                # A header is only seen when it is whole; a piece that began it is at most a read.
                self._count_head(len(data))
            elif not self._in_head:
                self._count_wire(len(data))
        except (httptools.HttpParserError, _RefusedError):
            self.send_400_response("")
            return
        if not self._unanswered and self._head_timer is None and not self.transport.is_closing():
            self._wait_for_head()

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if self.scope["method"] == "CONNECT":
                    raise httptools.HttpParserError("no proxy") from None
                # Java's client offers HTTP/2 with every first request, its body following.
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _head_without_upgrade(self) -> bytes:
        lines = [self.scope["method"].encode() + b" " + self.url + b" HTTP/1.1"]
        lines += [
            name + b": " + value for name, value in self.headers if name not in _UPGRADE_HEADERS
        ]
        return b"\r\n".join([*lines, b"", b""])

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for a request, if any does."""
        waiting = [
            (other.waiting_since, index, other)
            for index, other in enumerate(self.connections)
            if isinstance(other, BoundedProtocol)
            and other is not self
            and other.waiting_since is not None
        ]
        if not waiting:
            return False
        oldest = min(waiting)[2]
        self.connections.discard(oldest)
        oldest.transport.abort()
        return True

    # Timers

    def _wait_for_head(self) -> None:
        self.waiting_since = self.loop.time()
        self._head_timer = self.loop.call_later(self.bounds.header_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.transport.is_closing() or self._unanswered:
            return
        if not self._in_head:
            self.transport.close()
            return
        self._refuse(
            HTTPStatus.REQUEST_TIMEOUT,
            "request_timeout",
            f"The headers did not come within {self.bounds.header_seconds:g} s (header_timeout).",
        )

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.bounds.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _stop_keep_alive(self) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def _stop_timers(self) -> None:
        self._stop_keep_alive()
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._write_timer = None

    # The parser's calls

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._pieces = self._body_bytes = self._wire_bytes = 0
        self._upgrade_offered = False

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + 4)
        if name.lower() == b"content-length" and len(value) > _MOST_LENGTH_DIGITS:
            self._fail(HTTPStatus.BAD_REQUEST, "invalid_http", "The Content-Length is too long.")
        # Those after a body have no meaning here.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._upgrade_offered = self.parser.should_upgrade()
        if self._upgrade_offered:
            self.scope["method"] = self.parser.get_method().decode("ascii")
            return
        self._check_version()
        self._check_host()
        if len(self.pipeline) >= _MOST_PIPELINED:
            self._fail(
                HTTPStatus.BAD_REQUEST,
                "too_many_requests",
                f"More than {_MOST_PIPELINED} requests were sent ahead of their answers.",
            )
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self.waiting_since = None
        super().on_headers_complete()
        self._unanswered.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        self._pieces += 1
        self._body_bytes += len(body)
        tiny = self._body_bytes < self._pieces * _LEAST_PIECE_BYTES
        if self._pieces > _FREE_PIECES and tiny:
            self._fail(
                HTTPStatus.BAD_REQUEST,
                "chunks_too_small",
                f"Chunks are shorter than {_LEAST_PIECE_BYTES} bytes on average; send longer ones.",
            )
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._upgrade_offered:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        self._unanswered.popleft()
        super().on_response_complete()
        if not self._unanswered:
            self.waiting_since = self.loop.time()

    def _count_head(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > self.bounds.header_bytes:
            self._fail(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                "headers_too_large",
                f"The headers are longer than {self.bounds.header_bytes} bytes (max_header_bytes).",
            )

    def _count_wire(self, count: int) -> None:
        """Bytes since the head that came with others, of which the body's are a part."""
        self._wire_bytes += count
        if self._wire_bytes > 2 * self._body_bytes + _MOST_FRAMING_BYTES:
            self._fail(
                HTTPStatus.BAD_REQUEST,
                "chunks_too_small",
                "More bytes were sent around the body than in it; leave out chunk extensions.",
            )

    def _check_version(self) -> None:
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            self._fail(
                HTTPStatus.HTTP_VERSION_NOT_SUPPORTED,
                "http_version_not_supported",
                f"HTTP/{version} is not spoken here; use HTTP/1.1.",
            )

    def _check_host(self) -> None:
        """One host, which a URI in absolute form names before the header (RFC 9112, 3.2.2)."""
        if b"://" in self.url.partition(b"?")[0]:
            host = urlsplit(self.url).netloc.rpartition(b"@")[2]
            self.headers[:] = [(name, value) for name, value in self.headers if name != b"host"]
            self.headers.append((b"host", host))
            return
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() != "1.0"):
            self._fail(
                HTTPStatus.BAD_REQUEST, "invalid_host", "Send one Host header, no less, no more."
            )

    # Refusals

    def _fail(self, status: HTTPStatus, code: str, message: str) -> None:
        """Raises what ends the parser's run."""
        self._refusal = (status, code, message)
        raise _RefusedError(message)

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser stumbled over; nothing is written into an answer on its way."""
        self._refuse(
            *(
                self._refusal
                or (HTTPStatus.BAD_REQUEST, "invalid_http", "This is not valid HTTP/1.1.")
            )
        )

    def _refuse(self, status: HTTPStatus, code: str, message: str) -> None:
        self._refused = True
        self.waiting_since = self.loop.time()
        self._stop_timers()
        logger.info("refused a connection with %d: %s", status, message)
        begun = any(cycle.response_started for cycle in self._unanswered)
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        self.pipeline.clear()
        if begun:
            self.transport.abort()
            return
        server_fault = status >= HTTPStatus.INTERNAL_SERVER_ERROR
        kind = "server_error" if server_fault else "invalid_request_error"
        body = json.dumps(error_body(message, kind, None, code)).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n"
            + ("retry-after: 1\r\n" if server_fault else "")
        )
        self.transport.write(head.encode() + b"\r\n" + body)
        # Closed with unread data, the connection would be reset and the answer lost.
        with contextlib.suppress(OSError, RuntimeError):
            self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self.transport.abort)


def _notice_dead_peers(transport: asyncio.Transport, seconds: float) -> None:
    """Have the system end connections whose peer is gone, or takes nothing of what is left."""
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError, AttributeError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
