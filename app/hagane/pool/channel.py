"""Messages over a Unix socket pair: a 4-byte little-endian length, then MessagePack.

The socket's end of file is how each side learns, in order and without polling, that the other
process is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from hagane.pool.messages import FromEngine, ToEngine
from hagane.system.errors import HaganeError

_HEADER = struct.Struct("<I")
_CHUNK_BYTES = 1 << 18


def encode(message: msgspec.Struct) -> bytes:
    """One frame: header and body."""
    body = msgspec.msgpack.encode(message)
    return _HEADER.pack(len(body)) + body


class MalformedMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that cannot be decoded; `request_id` is the request's that it was to begin."""

    request_id: str | None = None
    reason: str = ""


class Frames:
    """Messages out of a stream of bytes that may be cut anywhere.

    `most_bytes` bounds a message's body where the other side is not to be believed.
    """

    def __init__(self, messages: Any, most_bytes: int | None = None) -> None:
        self.most_bytes = most_bytes
        self._buffer = bytearray()
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(messages)

    def feed(self, data: bytes) -> list[Any]:
        """The messages completed by `data`. Raises ConnectionAbortedError for one too large."""
        self._buffer += data
        messages: list[Any] = []
        offset = 0
        while len(self._buffer) - offset >= _HEADER.size:
            (size,) = _HEADER.unpack_from(self._buffer, offset)
            if self.most_bytes is not None and size > self.most_bytes:
                raise ConnectionAbortedError(f"a message of {size} bytes is too large")
            end = offset + _HEADER.size + size
            if end > len(self._buffer):
                break
            messages.append(self._decode(bytes(self._buffer[offset + _HEADER.size : end])))
            offset = end
        del self._buffer[:offset]
        return messages

    def _decode(self, body: bytes) -> Any:
        try:
            return self._decoder.decode(body)
        except (msgspec.MsgspecError, HaganeError) as error:
            try:
                named = msgspec.msgpack.decode(body, type=MalformedMessage)
            except msgspec.MsgspecError:
                named = MalformedMessage()
            return msgspec.structs.replace(named, reason=str(error))


class EngineChannel:
    """The engine's end: blocking, read once per step."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._frames = Frames(ToEngine)
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)

    def wake(self) -> None:
        """End a `receive` that waits, or the next one, without a message. Any thread may call."""
        # A full buffer wakes as well.
        with contextlib.suppress(BlockingIOError):
            self._waker.send(b"!")

    def send(self, message: FromEngine) -> None:
        """Raises BrokenPipeError when the API process is gone."""
        self._socket.sendall(encode(message))

    def receive(self, timeout: float | None) -> list[ToEngine | MalformedMessage]:
        """Every whole message at hand, waiting up to `timeout` seconds (None: forever) for one.

        Raises EOFError when the API process is gone.
        """
        messages: list[ToEngine | MalformedMessage] = []
        while readable := select.select([self._socket, self._woken], [], [], timeout)[0]:
            timeout = 0.0
            if self._woken in readable:
                self._woken.recv(_CHUNK_BYTES)
            if self._socket not in readable:
                continue
            data = self._socket.recv(_CHUNK_BYTES)
            if not data:
                raise EOFError("the API process closed the channel")
            messages += self._frames.feed(data)
        return messages


class ClientChannel:
    """The API's end: asynchronous, writes are buffered so that sending never waits."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._frames = Frames(FromEngine)

    @classmethod
    async def open(cls, connection: socket.socket) -> ClientChannel:
        connection.setblocking(False)
        return cls(*await asyncio.open_connection(sock=connection))

    def send(self, message: ToEngine) -> None:
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    async def messages(self) -> AsyncIterator[FromEngine | MalformedMessage]:
        """Messages until the engine's end is closed, orderly or by its death."""
        while data := await self._read():
            for message in self._frames.feed(data):
                yield message

    async def _read(self) -> bytes:
        try:
            return await self._reader.read(_CHUNK_BYTES)
        except ConnectionError:
            return b""

    def close(self) -> None:
        self._writer.close()
