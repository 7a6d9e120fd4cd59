"""Replicas as one engine: real engines, some of which are lost on the way."""

from __future__ import annotations

import asyncio

import pytest
from hagane.cluster.connection import ClusterConnection
from hagane.cluster.replica import EngineReplica
from hagane.pool.client import EngineClient
from hagane.pool.messages import AdapterRef, GenerateRequest, SamplingParams
from hagane.system.errors import (
    DeadlineExceededError,
    EngineCrashedError,
    EngineUnavailableError,
    ModelError,
    QueueFullError,
)

from tests.support.engine import config


class Local:
    """Replicas in this process. `lost` calls meet a replica that dies after so many deltas."""

    def __init__(self, replica: EngineReplica) -> None:
        self.replica = replica
        self.lost: list[int] = []
        self.calls = 0

    async def generate(self, request, seconds, hint):
        self.calls += 1
        last = self.lost.pop(0) if self.lost else None
        if last == 0:
            raise ConnectionError("the replica died")
        count = 0
        async for outcome in self.replica.generate(request, seconds):
            yield outcome
            count += 1
            if count == last:
                raise ConnectionError("the replica died")

    async def report(self):
        return await self.replica.report()

    async def check_adapter(self, request):
        return await self.replica.check_adapter(request)


def request(name: str, **changes) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=changes.pop("max_tokens", 6), temperature=0)
    return GenerateRequest(
        request_id=name, prompt=tuple(range(5, 25)), sampling=sampling, **changes
    )


async def tokens(client: EngineClient, asked: GenerateRequest) -> list[int]:
    return [token async for delta in client.generate(asked) for token in delta.tokens]


@pytest.fixture
async def cluster(tiny_model_dir):
    """(replicas, the client that takes them for one engine)"""
    replicas = Local(EngineReplica("one", config(tiny_model_dir)))
    await replicas.replica.start()

    async def connect(_):
        return ClusterConnection(replicas)

    client = EngineClient(config(tiny_model_dir), connect=connect)
    await client.start()
    await client.ready()
    yield replicas, client
    await client.stop(1)
    await replicas.replica.stop()


async def test_requests_run_elsewhere_and_lost_replicas_cost_none_that_has_not_begun(cluster):
    replicas, client = cluster
    expected = await tokens(client, request("a"))
    assert len(expected) == 6
    replicas.lost, replicas.calls = [0, 0], 0
    assert await tokens(client, request("b")) == expected
    assert replicas.calls == 3
    replicas.lost = [1]
    with pytest.raises(EngineCrashedError):
        # Longer than what is gathered into one message.
        await tokens(client, request("c", max_tokens=100))
    replicas.lost = [0] * 4
    with pytest.raises(EngineUnavailableError):
        await tokens(client, request("d"))
    assert client.stats.blocks_total > 0

    with pytest.raises(DeadlineExceededError):
        await tokens(client, request("e", deadline=0.0))
    with pytest.raises(ModelError, match="none"):
        await client.check_adapter(AdapterRef("x", "/none", "d"))

    async with asyncio.timeout(20):
        stream = client.generate(request("f", max_tokens=400))
        await anext(stream)
        await stream.aclose()
        while (await replicas.report()).stats.running:
            await asyncio.sleep(0.02)


async def test_full_replicas_refuse(cluster, monkeypatch):
    replicas, client = cluster

    async def full(*_):
        raise QueueFullError("full", retry_after=1.0)
        yield

    replicas.generate = full
    with pytest.raises(QueueFullError):
        await tokens(client, request("a"))
