"""Text of all sizes, read off the event loop while other programs run."""

from __future__ import annotations

import asyncio
import threading

from hagane.api.offload import Offload


async def test_small_text_waits_neither_for_programs_nor_for_large_text():
    offload, free = Offload(), threading.Event()
    waiting = [
        *(asyncio.create_task(offload.run_blocking(9, free.wait, 20)) for _ in range(30)),
        *(asyncio.create_task(offload.run(1 << 20, free.wait, 20)) for _ in range(3)),
    ]
    try:
        await asyncio.sleep(0)
        assert await asyncio.wait_for(offload.run(10_000, len, "abc"), 5) == 3
        assert not any(task.done() for task in waiting)
    finally:
        free.set()
    assert all(await asyncio.gather(*waiting))
