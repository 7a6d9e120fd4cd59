"""Bodies as they come: whole, too long, too slow, too many, or not to the end."""

from __future__ import annotations

import asyncio

import pytest
from hagane.api.body import Arriving, IncomingBody, read_body
from hagane.api.errors import BodyTimeoutError, OverloadedError
from hagane.system.errors import TooLargeError
from starlette.requests import ClientDisconnect

HANG_UP = {"type": "http.disconnect"}


def piece(content: bytes, *, more: bool = True) -> dict:
    return {"type": "http.request", "body": content, "more_body": more}


def body(*messages: dict, declared: bytes | None = None, timeout: float = 5) -> IncomingBody:
    waiting = list(messages)

    async def receive() -> dict:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    headers = [] if declared is None else [(b"content-length", declared)]
    return IncomingBody({"type": "http", "headers": headers}, receive, timeout)


async def test_a_whole_body_comes_in_one_message_and_then_what_follows():
    arriving = Arriving()
    receive = await read_body(body(piece(b"ab"), piece(b"c", more=False), HANG_UP), 3, arriving)
    assert await receive() == piece(b"abc", more=False)
    assert await receive() == HANG_UP
    assert arriving.total == 0


@pytest.mark.parametrize(
    "sent",
    [
        body(piece(b"abcd", more=False)),
        body(piece(b"ab"), piece(b"cd")),
        body(declared=b"4"),
    ],
    ids=["whole", "pieces", "declared"],
)
async def test_more_than_the_limit_is_refused_as_soon_as_it_is_known(sent):
    arriving = Arriving()
    with pytest.raises(TooLargeError, match="max_body_bytes"):
        await asyncio.wait_for(read_body(sent, 3, arriving), 1)
    assert arriving.total == 0


async def test_a_hang_up_is_not_waited_for():
    with pytest.raises(ClientDisconnect):
        await read_body(body(piece(b"a"), HANG_UP), 9, Arriving())


async def test_a_body_that_does_not_come_is_given_up():
    with pytest.raises(BodyTimeoutError, match="1 bytes after"):
        await read_body(body(piece(b"a"), timeout=0.05), 9, Arriving())


async def test_only_waiting_counts_as_time():
    slow = body(piece(b"a"), piece(b"b", more=False), timeout=0.05)
    await slow.receive()
    await asyncio.sleep(0.1)  # as a disk that is slow to take what has come
    assert (await slow.receive())["body"] == b"b"


async def test_bodies_on_their_way_are_bounded_together():
    arriving = Arriving()
    stalled = [
        asyncio.create_task(read_body(body(piece(b"x" * 9)), 10, arriving)) for _ in range(17)
    ]
    await asyncio.sleep(0.01)
    assert arriving.total == 153
    with pytest.raises(OverloadedError, match="try again"):
        await read_body(body(piece(b"x" * 9)), 10, arriving)
    # A whole one is never in the way of others.
    await read_body(body(piece(b"x" * 9, more=False)), 10, arriving)
    for task in stalled:
        task.cancel()
    await asyncio.gather(*stalled, return_exceptions=True)
    assert arriving.total == 0
