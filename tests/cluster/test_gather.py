"""Deltas that come close together travel as one, without a loss."""

from __future__ import annotations

import asyncio

import pytest
from hagane.cluster.gather import gathered, merge
from hagane.pool.messages import TokenDelta, TokenLogprobs
from hagane.system.errors import EngineCrashedError


def delta(token: int, index: int = 0, **more) -> TokenDelta:
    return TokenDelta(request_id="r", index=index, tokens=(token,), **more)


def test_merging_keeps_every_token_of_every_continuation():
    first = (TokenLogprobs(1, -0.5),)
    parts = [
        delta(1, logprobs=first, cached_tokens=7, queue_seconds=0.5),
        delta(2, 1, prompt_logprobs=(None,)),
        delta(3, logprobs=(TokenLogprobs(3, -1.5),)),
        delta(4, finish_reason="stop", stopped_on_token=True),
    ]
    zero, one = merge(parts)
    assert zero.tokens == (1, 3, 4)
    assert [entry.token for entry in zero.logprobs] == [1, 3]
    assert (zero.cached_tokens, zero.queue_seconds) == (7, 0.5)
    assert (zero.finish_reason, zero.stopped_on_token) == ("stop", True)
    assert (one.tokens, one.prompt_logprobs, one.finish_reason) == ((2,), (None,), None)


async def test_the_first_comes_at_once_and_the_others_together():
    gone = []

    async def source():
        try:
            for token in range(5):
                yield delta(token)
                if token == 0:
                    await asyncio.sleep(0.05)
        finally:
            gone.append(True)

    parts = [[t for d in part for t in d.tokens] async for part in gathered(source(), 30.0)]
    assert parts == [[0], [1, 2, 3, 4]]
    assert gone


async def test_an_error_follows_what_came_before_it_and_closing_closes_the_source():
    async def failing():
        yield delta(1)
        yield delta(2)
        raise EngineCrashedError("gone")

    seen = []
    with pytest.raises(EngineCrashedError):
        async for part in gathered(failing()):
            seen += [token for each in part for token in each.tokens]
    assert seen == [1, 2]

    closed = asyncio.Event()

    async def endless():
        try:
            while True:
                yield delta(1)
                await asyncio.sleep(0)
        finally:
            closed.set()

    stream = gathered(endless())
    await anext(stream)
    await stream.aclose()
    assert closed.is_set()
