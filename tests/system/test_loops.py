"""Loops go on whatever a round raises; those who wait see every change."""

from __future__ import annotations

import asyncio
import logging

from hagane.system.loops import BackgroundLoop, Backoff, Changes


class Panic(BaseException):
    """As libraries in Rust raise it."""


def test_pauses_double_up_to_the_longest_and_begin_anew():
    backoff = Backoff(0.5, 3.0)
    assert [backoff.next() for _ in range(4)] == [0.5, 1.0, 2.0, 3.0]
    backoff.reset()
    assert backoff.next() == 0.5


def test_a_loop_outlives_what_its_rounds_raise(caplog):
    errors = [
        OSError("disk"), UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates"),
        Panic("index out of bounds"), asyncio.CancelledError(), None,
    ]  # fmt: skip

    async def scenario() -> None:
        done = asyncio.Event()

        async def round_() -> float:
            error = errors.pop(0) if errors else None
            if error is not None:
                raise error
            done.set()
            return 0.0

        loop = BackgroundLoop("sweeper", round_, Backoff(0.001, 0.001))
        loop.start()
        await asyncio.wait_for(done.wait(), 10)
        assert loop.running
        assert (loop.failures, loop.failing) == (4, False)
        await loop.stop()
        assert not loop.running

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert [record.exc_info is not None for record in caplog.records] == [True] * 4
    assert "sweeper failed" in caplog.text


def test_a_cancelled_loop_ends_in_the_midst_of_a_round():
    async def scenario() -> None:
        began = asyncio.Event()

        async def round_() -> float:
            began.set()
            await asyncio.sleep(60)
            return 0.0

        loop = BackgroundLoop("sleeper", round_)
        loop.start()
        await began.wait()
        await asyncio.wait_for(loop.stop(), 5)
        assert (loop.running, loop.failures) == (False, 0)

    asyncio.run(scenario())


def test_changes_wake_all_who_wait():
    async def scenario() -> None:
        changes, items = Changes(), [1, 2]
        waits = [asyncio.create_task(changes.wait_for(lambda: not items)) for _ in range(2)]
        for _ in range(2):
            await asyncio.sleep(0)
            items.pop()
            changes.notify()
        await asyncio.wait_for(asyncio.gather(*waits), 10)

    asyncio.run(scenario())
