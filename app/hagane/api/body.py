"""The bodies of requests: how many bytes, how much time, how much of them in memory at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from hagane.api.errors import BodyTimeoutError, OverloadedError
from hagane.system.errors import TooLargeError

# A body that comes slower than this for longer than `body_timeout` is given up.
_LEAST_BYTES_A_SECOND = 32 << 10
# Of bodies that are on their way at the same time, as a multiple of the largest.
_MOST_AT_A_TIME = 16


@dataclass
class Arriving:
    """Bytes of all the bodies that one application is reading into memory."""

    total: int = 0


class IncomingBody:
    """The body of one request as it comes; only waiting for the client counts as its time."""

    def __init__(self, scope: Scope, receive: Receive, timeout: float) -> None:
        self.declared = _declared(scope)
        self._receive = receive
        self._timeout = timeout
        self._waited = 0.0
        self._received = 0
        self._more = True

    async def receive(self) -> Message:
        """The next message. Raises BodyTimeoutError, and ClientDisconnect for a hang-up."""
        if not self._more:
            return await self._receive()
        clock = asyncio.get_running_loop().time
        started = clock()
        left = self._timeout + self._received / _LEAST_BYTES_A_SECOND - self._waited
        try:
            async with asyncio.timeout(left):
                message = await self._receive()
        except TimeoutError:
            raise BodyTimeoutError(
                f"The request's body did not come in time: {self._received} bytes after "
                f"{self._waited + clock() - started:.0f} s (body_timeout). Send it faster, or in "
                "smaller pieces."
            ) from None
        self._waited += clock() - started
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self._received += len(message.get("body", b""))
        self._more = message.get("more_body", False)
        return message


async def read_body(body: IncomingBody, limit: int, arriving: Arriving) -> Receive:
    """Read the whole body; the result gives it in one message, then what follows it.

    Raises TooLargeError as soon as it is, or is declared to be, longer than `limit` bytes;
    OverloadedError while many others are on their way; and what `IncomingBody.receive` raises.
    """
    if body.declared > limit:
        raise _too_large(limit)
    pieces: list[bytes] = []
    size, more = 0, True
    try:
        while more:
            message = await body.receive()
            piece = message.get("body", b"")
            pieces.append(piece)
            size += len(piece)
            arriving.total += len(piece)
            more = message.get("more_body", False)
            if size > limit:
                raise _too_large(limit)
            if more and arriving.total > _MOST_AT_A_TIME * limit:
                raise OverloadedError(
                    "Too many large requests arrive at once; try again in a moment.",
                    retry_after=1.0,
                )
    finally:
        arriving.total -= size
    whole: bytes | None = b"".join(pieces)

    async def replay() -> Message:
        nonlocal whole
        if whole is None:
            return await body.receive()
        content, whole = whole, None
        return {"type": "http.request", "body": content, "more_body": False}

    return replay


def _declared(scope: Scope) -> int:
    """The length that the client announced, bytes; 0 where it did not."""
    value = dict(scope["headers"]).get(b"content-length", b"0")
    return int(value) if value.isdigit() else 0


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"The request body is larger than {limit} bytes (max_body_bytes).")
