"""What becomes of answers in time, with a real store."""

from __future__ import annotations

import asyncio

from hagane.api.answers import AnswerLog
from hagane.store.answers.completions import StorageBounds
from hagane.store.store import Store
from prometheus_client import CollectorRegistry


async def test_old_chats_go_while_nobody_writes_any(tmp_path):
    store = Store.open(tmp_path / "data")
    chats = store.answers.chats
    chats.put("somebody", "a", 0, "secret", most_bytes=100, since=0.0)
    bounds = StorageBounds(1 << 20, 3600.0)
    log = AnswerLog(
        store.answers, bounds, CollectorRegistry(), durable=True, chats_seconds=0.0
    )  # fmt: skip
    log.start()
    try:
        async with asyncio.timeout(30):
            while chats.list("somebody", 0.0):
                await asyncio.sleep(0.01)
    finally:
        await log.stop()
        store.close()
