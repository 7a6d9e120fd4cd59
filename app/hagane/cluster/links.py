"""An edge's connections to replicas: one to each, for all requests that run there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from hagane.cluster.wire import (
    HANDSHAKE_SECONDS,
    HEARTBEAT_SECONDS,
    Address,
    FromReplica,
    Hello,
    MessageStream,
    Outcome,
    Refused,
)
from hagane.pool.messages import CancelRequest, GenerateRequest


@dataclass(eq=False)
class _Flight:
    """A request at a replica, of which `unfinished` continuations have not ended."""

    deliver: Callable[[Outcome], None]
    unfinished: int
    ended: asyncio.Future[None]


class Link:
    """A connection to the replica at `address`. What was lost with it raises ConnectionError."""

    def __init__(
        self, stream: MessageStream, messages: AsyncGenerator[Any, None], address: Address
    ) -> None:
        """`messages` are the stream's, after the first."""
        self._stream, self._messages, self.address = stream, messages, address
        self._flights: dict[str, _Flight] = {}
        self._lost: str | None = None
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, address: Address) -> Link:
        """Connect. Raises OSError, ConnectionRefusedError with the replica's reason among them."""
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            stream = MessageStream(reader, writer, FromReplica)
            try:
                stream.send(Hello(address.key))
                messages = stream.messages()
                # Nothing more is sent before: what nobody reads would break the connection.
                answer = await anext(messages, None)
                if not isinstance(answer, Outcome):
                    reason = answer.reason if isinstance(answer, Refused) else "it does not answer"
                    raise ConnectionRefusedError(f"the replica refused the connection: {reason}")
            except BaseException:
                stream.abort()
                raise
        stream.trust()
        return cls(stream, messages, address)

    @property
    def lost(self) -> bool:
        """Whether the connection has ended."""
        return self._lost is not None

    async def generate(self, request: GenerateRequest, deliver: Callable[[Outcome], None]) -> None:
        """Run a request, whose deadline is in seconds from now; cancelling this cancels it."""
        self._require()
        ended = asyncio.get_running_loop().create_future()
        self._flights[request.request_id] = _Flight(deliver, request.n, ended)
        self._stream.send(request)
        try:
            await ended
        except asyncio.CancelledError:
            self._stream.send(CancelRequest(request.request_id))
            raise
        finally:
            del self._flights[request.request_id]

    def cancel(self, request_id: str, index: int) -> None:
        """Stop one continuation of a request, if it runs here."""
        if request_id in self._flights:
            self._stream.send(CancelRequest(request_id, index))

    async def close(self) -> None:
        """End the connection, and with it the requests that run."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    def _require(self) -> None:
        if self._lost is not None:
            raise ConnectionError(self._lost)

    async def _read(self) -> None:
        lost = "the replica closed the connection"
        beating = asyncio.create_task(self._beat())
        try:
            async for message in self._messages:
                match message:
                    case Outcome():
                        self._deliver(message)
                    case _:
                        lost = "the replica sent what cannot be read"
                        break
        except TimeoutError:
            lost = "the replica was silent for too long"
        except OSError as error:
            lost = f"the connection to the replica broke: {error}"
        finally:
            beating.cancel()
            self._lost = lost
            for flight in self._flights.values():
                if not flight.ended.done():
                    flight.ended.set_exception(ConnectionError(lost))
            await self._stream.close()

    def _deliver(self, outcome: Outcome) -> None:
        for delta in outcome.deltas:
            if (flight := self._flights.get(delta.request_id)) is not None:
                flight.unfinished -= delta.finish_reason is not None
                flight.deliver(Outcome((delta,)))
                if not flight.unfinished and not flight.ended.done():
                    flight.ended.set_result(None)
        for failure in outcome.failures:
            if (flight := self._flights.get(failure.request_id)) is not None:
                flight.deliver(Outcome(failures=(failure,)))
                if not flight.ended.done():
                    flight.ended.set_result(None)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self._stream.send(Hello(self.address.key))


class Links:
    """The connections to all replicas that requests went to, by the replicas' names."""

    def __init__(self) -> None:
        self._links: dict[str, asyncio.Task[Link]] = {}

    async def to(self, name: str, address: Address) -> Link:
        """The connection to a replica, which is made where there is none. Raises OSError."""
        opening = self._links.get(name)
        if opening is None or _gone(opening):
            self._forget_lost()
            opening = self._links[name] = asyncio.create_task(Link.open(address))
        # Shielded: others may wait for it when one of them is cancelled.
        return await asyncio.shield(opening)

    def cancel(self, request_id: str, index: int) -> None:
        """Stop one continuation of a request."""
        for opening in self._links.values():
            if opening.done() and not _gone(opening):
                opening.result().cancel(request_id, index)

    async def close(self) -> None:
        """End all connections."""
        for opening in self._links.values():
            with contextlib.suppress(OSError):
                await (await opening).close()
        self._links.clear()

    def _forget_lost(self) -> None:
        for name in [name for name, opening in self._links.items() if _gone(opening)]:
            del self._links[name]


def _gone(opening: asyncio.Task[Link]) -> bool:
    if not opening.done():
        return False
    return opening.cancelled() or opening.exception() is not None or opening.result().lost
