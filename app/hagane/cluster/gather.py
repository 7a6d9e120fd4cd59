"""Fewer, larger messages: what a stream brings within some milliseconds travels as one.

A message between machines costs as much as a small step. The first token is sent at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec

from hagane.pool.messages import TokenDelta

_SECONDS = 0.015


async def gathered(
    source: AsyncGenerator[TokenDelta, None], seconds: float = _SECONDS
) -> AsyncGenerator[tuple[TokenDelta, ...], None]:
    """The deltas of `source`, those of each `seconds` merged; raises what it raises, at its end."""
    waiting: list[TokenDelta] = []
    arrived = asyncio.Event()

    async def read() -> None:
        try:
            async with aclosing(source):
                async for delta in source:
                    waiting.append(delta)
                    arrived.set()
        finally:
            arrived.set()

    reading = asyncio.create_task(read())
    try:
        while True:
            await arrived.wait()
            arrived.clear()
            if waiting:
                merged = merge(waiting)
                waiting.clear()
                yield merged
            if not reading.done():
                await asyncio.wait({reading}, timeout=seconds)
            elif not waiting:
                reading.result()
                return
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def merge(deltas: Sequence[TokenDelta]) -> tuple[TokenDelta, ...]:
    """The same tokens in one delta for each continuation."""
    merged: dict[int, TokenDelta] = {}
    for delta in deltas:
        before = merged.get(delta.index)
        merged[delta.index] = delta if before is None else _joined(before, delta)
    return tuple(merged.values())


def _joined(first: TokenDelta, then: TokenDelta) -> TokenDelta:
    logprobs = first.logprobs
    if then.logprobs is not None:
        logprobs = (first.logprobs or ()) + then.logprobs
    return msgspec.structs.replace(
        first,
        tokens=first.tokens + then.tokens,
        logprobs=logprobs,
        finish_reason=then.finish_reason,
        stopped_on_token=then.stopped_on_token,
        embedding=then.embedding or first.embedding,
    )
