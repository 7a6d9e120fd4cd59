"""A replica's port: edges connect to it, send requests and get their tokens.

A connection begins with the key that the replica gave to Ray. Tokens of one turn of the event loop
travel as one message, whichever requests they belong to.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import Iterator
from contextlib import aclosing, contextmanager

from hagane.cluster.replica import EngineReplica
from hagane.cluster.wire import (
    HANDSHAKE_SECONDS,
    HEARTBEAT_SECONDS,
    PROTOCOL,
    Address,
    Hello,
    MessageStream,
    Outcome,
    Refused,
    ToReplica,
)
from hagane.pool.channel import MalformedMessage
from hagane.pool.messages import (
    CancelRequest,
    FailureCode,
    GenerateRequest,
    RequestFailed,
    TokenDelta,
)
from hagane.system.loops import Changes

logger = logging.getLogger(__name__)

# Connections that have not said `Hello` yet.
_MOST_STRANGERS = 64
# An edge that leaves so much unread is as good as lost, and its tokens fill the memory.
_MOST_UNSENT_BYTES = 256 << 20


class Listener:
    """Serves `replica` on a port of its own."""

    def __init__(self, replica: EngineReplica) -> None:
        self.replica = replica
        self.draining = False
        # Prompt tokens of the requests that have no token yet, by connection and request.
        self.queued: dict[tuple[int, str], int] = {}
        self.changes = Changes()
        self._key = secrets.token_urlsafe(24)
        self._sessions: dict[_Session, asyncio.Task[None] | None] = {}
        self._strangers = 0
        self._server: asyncio.Server | None = None

    async def open(self, host: str) -> Address:
        """Listen on `host`; returns where. Raises OSError."""
        self._server = await asyncio.start_server(self._accept, host, 0)
        port = self._server.sockets[0].getsockname()[1]
        return Address(host, port, self._key)

    @property
    def requests(self) -> int:
        """Requests in flight."""
        return sum(len(session.requests) for session in self._sessions)

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens of the requests that have no token yet."""
        return sum(self.queued.values())

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, which edges send elsewhere then, and wait for the others."""
        self.draining = True
        try:
            async with asyncio.timeout(seconds):
                await self.changes.wait_for(lambda: not self.requests)
        except TimeoutError:
            logger.warning("%d requests are cut off after %g s", self.requests, seconds)

    async def close(self) -> None:
        """End all connections."""
        if self._server is not None:
            self._server.close()
        serving = [task for task in self._sessions.values() if task is not None]
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    @contextmanager
    def stranger(self) -> Iterator[None]:
        """Count a connection that has not said who it is, which it must do in time."""
        self._strangers += 1
        try:
            yield
        finally:
            self._strangers -= 1

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = MessageStream(reader, writer, ToReplica)
        if self._strangers >= _MOST_STRANGERS:
            stream.abort()
            return
        session = _Session(stream, self)
        self._sessions[session] = asyncio.current_task()
        try:
            await session.run(self._key)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            await session.close()
            del self._sessions[session]
            self.changes.notify()


class _Session:
    """The connection of one edge."""

    def __init__(self, stream: MessageStream, listener: Listener) -> None:
        self._stream, self._listener = stream, listener
        self.requests: dict[str, asyncio.Task[None]] = {}
        self._deltas: list[TokenDelta] = []
        self._failures: list[RequestFailed] = []
        self._flushing = False

    async def run(self, key: str) -> None:
        """Serve the edge until it leaves."""
        messages = self._stream.messages()
        async with aclosing(messages):
            with self._listener.stranger():
                # One limit for all of it: each byte of a slow peer would begin another.
                async with asyncio.timeout(HANDSHAKE_SECONDS):
                    hello = await anext(messages, None)
            refusal = _refusal(hello, key)
            if refusal is not None:
                self._stream.send(Refused(refusal))
                return
            self._stream.trust()
            self._stream.send(Outcome())
            beating = asyncio.create_task(self._beat())
            try:
                async for message in messages:
                    self._receive(message)
            finally:
                beating.cancel()

    async def close(self) -> None:
        """Cancel the requests and end the connection."""
        running = list(self.requests.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._stream.close()

    def _receive(self, message: Hello | GenerateRequest | CancelRequest | MalformedMessage) -> None:
        match message:
            case GenerateRequest() if self._listener.draining:
                self._fail(message.request_id, "engine_unavailable", "The replica is leaving.")
            case GenerateRequest():
                task = asyncio.create_task(self._generate(message))
                self.requests[message.request_id] = task
            case CancelRequest(index=None):
                if (running := self.requests.get(message.request_id)) is not None:
                    running.cancel()
            case CancelRequest(index=int() as index):
                self._listener.replica.cancel(message.request_id, index)
            case MalformedMessage(request_id=str() as request_id):
                self._fail(request_id, "invalid_request", message.reason)
            case _:
                pass  # a Hello: the edge lives

    async def _generate(self, request: GenerateRequest) -> None:
        listener, queued = self._listener, (id(self), request.request_id)
        listener.queued[queued] = len(request.prompt)
        try:
            outcomes = listener.replica.generate(request, request.deadline)
            async with aclosing(outcomes):
                async for outcome in outcomes:
                    listener.queued.pop(queued, None)
                    self._post(outcome)
        finally:
            listener.queued.pop(queued, None)
            del self.requests[request.request_id]
            listener.changes.notify()

    def _fail(self, request_id: str, code: FailureCode, message: str) -> None:
        self._post(Outcome(failures=(RequestFailed(request_id, code, message),)))

    def _post(self, outcome: Outcome) -> None:
        self._deltas += outcome.deltas
        self._failures += outcome.failures
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self._send(Outcome(tuple(self._deltas), tuple(self._failures)))
        self._deltas.clear()
        self._failures.clear()

    def _send(self, outcome: Outcome) -> None:
        self._stream.send(outcome)
        if (unsent := self._stream.unsent_bytes) > _MOST_UNSENT_BYTES:
            logger.warning(
                "the edge at %s left %d bytes unread: cut off", self._stream.peer, unsent
            )
            self._stream.abort()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self._send(Outcome())


def _refusal(hello: object, key: str) -> str | None:
    # As bytes: strings are compared only where they are ASCII.
    if not isinstance(hello, Hello) or not hmac.compare_digest(hello.key.encode(), key.encode()):
        return "this connection has not the replica's key"
    if hello.protocol != PROTOCOL:
        return f"the edge speaks protocol {hello.protocol} and the replica {PROTOCOL}"
    return None
