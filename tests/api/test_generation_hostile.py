"""A request cannot hurt another: odd bodies alongside streams that must stay bit-equal."""

from __future__ import annotations

import asyncio
import time

import httpx

from tests.support.hostile import Bodies, Report, send, watched_text

SECONDS, SENDERS, STREAMS = 5, 8, 4


async def attack(url: str, report: Report) -> tuple[list[str], list[str]]:
    """(texts alone, texts under attack)."""
    bodies = Bodies.of(url, seed=7)
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        alone = [await watched_text(client, seed) for seed in range(STREAMS)]
        until = time.monotonic() + SECONDS

        async def hostile() -> None:
            while time.monotonic() < until:
                await send(client, report, *bodies.draw())

        async def watched(seed: int) -> list[str]:
            texts = []
            while time.monotonic() < until:
                texts.append(await watched_text(client, seed))
            return texts

        senders = [asyncio.create_task(hostile()) for _ in range(SENDERS)]
        disturbed = await asyncio.gather(*(watched(seed) for seed in range(STREAMS)))
        await asyncio.gather(*senders)
    repeated = [text for seed, texts in enumerate(disturbed) for text in [alone[seed]] * len(texts)]
    return repeated, [text for texts in disturbed for text in texts]


def test_a_request_cannot_hurt_another(server):
    restarts = server.metric("hagane_engine_restarts_total")
    report = Report()
    alone, disturbed = asyncio.run(attack(server.url, report))
    assert not report.wrong, report.wrong[:3]
    assert disturbed == alone
    assert len(disturbed) >= STREAMS
    assert sum(report.statuses.values()) > 40
    assert {200, 400} <= set(report.statuses)
    assert server.metric("hagane_engine_restarts_total") == restarts
