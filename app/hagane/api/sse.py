"""Whole answers and server-sent events, and noticing that nobody listens any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from fastapi import Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from hagane.api.errors import describe
from hagane.system.errors import HaganeError
from hagane.system.json_lines import encode_line

T = TypeVar("T")


class ClientDisconnectedError(Exception):
    """The client went away; there is nobody to answer."""


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled the moment the client disconnects."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnectedError
        return task.result()
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def json_response(content: Any) -> Response:
    """The whole answer at once, without the framework's walk over every value."""
    return Response(msgspec.json.encode(content), media_type="application/json")


@dataclass(frozen=True)
class Framing:
    """How a dialect writes its stream: whether events are `named` by their own type, its `end`,
    and the event of an error that ends it.
    """

    named: bool
    end: bytes
    error: Callable[[HaganeError], dict[str, Any]]


CHUNKS = Framing(named=False, end=b"data: [DONE]\n\n", error=lambda error: describe(error)[1])


async def stream(
    request: Request,
    events: AsyncGenerator[dict[str, Any], None],
    keep_alive: float,
    framing: Framing = CHUNKS,
) -> EventSourceResponse:
    """Answer with `events` as server-sent events, JSON each.

    An error before the first event is still an HTTP error: the response starts with it, or
    when the keep-alive interval has passed without one.
    """
    first = asyncio.ensure_future(anext(events, None))
    watch = asyncio.ensure_future(_disconnected(request))
    await asyncio.wait((first, watch), timeout=keep_alive, return_when=asyncio.FIRST_COMPLETED)
    gone = watch.done()
    watch.cancel()
    if gone or (first.done() and first.exception() is not None):
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await events.aclose()
        if gone:
            raise ClientDisconnectedError
        first.result()
    return EventSourceResponse(
        _lines(first, events, framing),
        ping=max(1, round(keep_alive)),
        ping_message_factory=lambda: ServerSentEvent(comment="keep-alive"),
        sep="\n",
    )


async def _lines(
    first: asyncio.Future[dict[str, Any] | None],
    events: AsyncGenerator[dict[str, Any], None],
    framing: Framing,
) -> AsyncIterator[bytes]:
    async with aclosing(events):
        try:
            if (event := await first) is not None:
                yield _line(event, framing)
            async for event in events:
                yield _line(event, framing)
            yield framing.end
        except HaganeError as error:
            yield _line(framing.error(error), framing)
        finally:
            first.cancel()


def _line(event: dict[str, Any], framing: Framing) -> bytes:
    data = encode_line(event)
    if framing.named:
        return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), data)
    return b"data: %b\n\n" % data
