"""Replicas of a cluster in the process of a test."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from hagane.cluster.links import Links
from hagane.cluster.listener import Listener
from hagane.cluster.replica import EngineReplica
from hagane.cluster.wire import Address
from hagane.pool.messages import GenerateRequest, SamplingParams


class Gated(EngineReplica):
    """A replica whose requests stand still after their first token until `gate` is set."""

    gate = asyncio.Event()
    gate.set()

    async def generate(self, request, seconds):
        async with aclosing(super().generate(request, seconds)) as outcomes:
            async for outcome in outcomes:
                yield outcome
                await self.gate.wait()


class Local:
    """Replicas in this process, the first of which is asked until it is `gone`, as the lost are."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners, self.links = listeners, Links()
        self.addresses: list[Address] = []
        self.gone: set[int] = set()
        self.calls = 0

    async def generate(self, request, hint, deliver):
        self.calls += 1
        chosen = min(set(range(len(self.addresses))) - self.gone, default=0)
        try:
            link = await self.links.to(str(chosen), self.addresses[chosen])
            await link.generate(request, deliver)
        except OSError:
            self.gone.add(chosen)
            raise

    def cancel(self, request_id, index):
        self.links.cancel(request_id, index)

    async def reports(self):
        return [each.replica.report(each.queued_tokens) for each in self.listeners]

    async def check_adapter(self, request):
        return await self.listeners[0].replica.check_adapter(request)

    async def close(self):
        await self.links.close()


def request(name: str, **changes) -> GenerateRequest:
    sampling = SamplingParams(
        max_tokens=changes.pop("max_tokens", 6), temperature=0, ignore_eos=True
    )
    return GenerateRequest(
        request_id=name, prompt=tuple(range(5, 25)), sampling=sampling, **changes
    )
