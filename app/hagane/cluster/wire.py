"""The connection of an edge to a replica: what the pool's channel carries, over TCP.

Ray chooses the replica; requests and tokens go straight to it and back, those of all requests of
an edge over one connection. A message of Ray's for each token cost as much as the step itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from hagane.pool.channel import Frames, encode
from hagane.pool.messages import CancelRequest, GenerateRequest, RequestFailed, TokenDelta

# Differs between releases whose messages do.
PROTOCOL = 1
# A side that is silent for so long is gone, or the way to it.
SILENCE_SECONDS = 15.0
HEARTBEAT_SECONDS = 3.0
# The other side has so long to say who it is, and to take what is left when a connection ends.
HANDSHAKE_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
# The first message is a `Hello` or its answer. The log-probabilities of
# long prompts, of several requests at once, take tens of MiB.
_MOST_FIRST_BYTES = 1 << 10
_MOST_MESSAGE_BYTES = 256 << 20
_CHUNK_BYTES = 1 << 18


class Address(msgspec.Struct, frozen=True):
    """Where a replica listens, and the `key` that it asks for. Known to those who may ask Ray."""

    host: str
    port: int
    key: str


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The first message of an edge."""

    key: str
    protocol: int = PROTOCOL


class Outcome(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What there is of requests since the last of these: new tokens, and those that failed.

    Without either it says that the replica is alive.
    """

    deltas: tuple[TokenDelta, ...] = ()
    failures: tuple[RequestFailed, ...] = ()


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The replica takes no requests over this connection; it closes."""

    reason: str


ToReplica = Hello | GenerateRequest | CancelRequest
FromReplica = Outcome | Refused


class MessageStream:
    """Messages over a connection; sending never waits. They are short until `trust`."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, messages: Any
    ) -> None:
        self._reader, self._writer = reader, writer
        self._frames = Frames(messages, _MOST_FIRST_BYTES)
        self.peer = writer.get_extra_info("peername")

    def trust(self) -> None:
        """Take messages of any sensible size from now on: the other side has the key."""
        self._frames.most_bytes = _MOST_MESSAGE_BYTES

    @property
    def unsent_bytes(self) -> int:
        """What waits for the other side to read; 0 once the connection ends."""
        return 0 if self._writer.is_closing() else self._writer.transport.get_write_buffer_size()

    def send(self, message: ToReplica | FromReplica) -> None:
        """Send a message; a connection that has ended loses it."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    async def messages(self) -> AsyncGenerator[Any, None]:
        """What arrives, `MalformedMessage`s too, until the other side closes.

        Raises TimeoutError or another OSError when that side is lost.
        """
        while True:
            async with asyncio.timeout(SILENCE_SECONDS):
                data = await self._reader.read(_CHUNK_BYTES)
            if not data:
                return
            for message in self._frames.feed(data):
                yield message

    async def close(self) -> None:
        """Send what is left, and end the connection. Who does not read it loses it."""
        self._writer.close()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._writer.wait_closed()
        except OSError:
            self.abort()

    def abort(self) -> None:
        """End the connection at once, without what is left."""
        self._writer.transport.abort()
