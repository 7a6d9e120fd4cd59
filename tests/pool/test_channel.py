"""Frames over a real socket pair, cut anywhere."""

from __future__ import annotations

import asyncio
import socket

import pytest
from hagane.pool.channel import ClientChannel, EngineChannel, encode
from hagane.pool.messages import CancelRequest, EngineFailed, FromEngine, Shutdown

MESSAGES = [EngineFailed("a", "x" * 300), EngineFailed("b", ""), EngineFailed("c", "\u00e9")]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
async def test_a_client_reads_whole_messages_from_pieces_of_any_size(size: int) -> None:
    ours, theirs = socket.socketpair()
    stream = b"".join(map(encode, MESSAGES))
    channel = await ClientChannel.open(ours)
    received: list[FromEngine] = []

    async def read() -> None:
        received.extend([message async for message in channel.messages()])

    reading = asyncio.create_task(read())
    with theirs:
        for start in range(0, len(stream), size):
            theirs.sendall(stream[start : start + size])
            await asyncio.sleep(0)
        theirs.sendall(encode(MESSAGES[0])[:-1])  # the end of file comes inside a message
    await reading
    assert received == MESSAGES


def test_an_engine_gets_all_that_is_at_hand_and_the_rest_later() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        channel = EngineChannel(ours)
        whole = encode(CancelRequest("r")) + encode(Shutdown())
        theirs.sendall(whole[:-1])
        assert channel.receive(timeout=None) == [CancelRequest("r")]
        assert channel.receive(timeout=0.0) == []
        theirs.sendall(whole[-1:])
        assert channel.receive(timeout=None) == [Shutdown()]
    with pytest.raises(EOFError):
        channel.receive(timeout=None)
