"""Replicas as one engine: real engines behind real ports, some of which are lost on the way."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, asynccontextmanager

import msgspec
import pytest
import pytest_asyncio
from hagane.cluster.connection import ClusterConnection
from hagane.cluster.links import Links
from hagane.cluster.listener import Listener
from hagane.cluster.replica import EngineReplica
from hagane.cluster.wire import Address
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

# One engine for all.
pytestmark = pytest.mark.asyncio(loop_scope="module")


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
    """Replicas in this process, the first of which is asked until it is `gone`."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners, self.links = listeners, Links()
        self.addresses: list[Address] = []
        self.gone: set[int] = set()
        self.calls = 0

    async def generate(self, request, hint, deliver):
        self.calls += 1
        chosen = min(set(range(len(self.addresses))) - self.gone, default=0)
        link = await self.links.to(str(chosen), self.addresses[chosen])
        await link.generate(request, deliver)

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


async def tokens(client: EngineClient, asked: GenerateRequest) -> list[int]:
    return [token async for delta in client.generate(asked) for token in delta.tokens]


@asynccontextmanager
async def client_of(replicas: Local, directory):
    replicas.addresses = [await each.open("127.0.0.1") for each in replicas.listeners]

    async def connect(_):
        return ClusterConnection(replicas)

    client = EngineClient(config(directory), connect=connect)
    await client.start()
    await client.ready()
    try:
        yield client
    finally:
        await client.stop(1)
        for each in replicas.listeners:
            await each.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tiny_model_dir):
    replica = Gated("one", config(tiny_model_dir))
    await replica.start()
    yield replica
    await replica.stop()


async def idle(listener: Listener) -> None:
    async with asyncio.timeout(30):
        while listener.requests or listener.replica.report().stats.running:
            await asyncio.sleep(0.02)


async def test_requests_run_at_a_replica_side_by_side(engine, tiny_model_dir):
    replicas = Local(Listener(engine))
    async with client_of(replicas, tiny_model_dir) as client:
        expected = await tokens(client, request("a"))
        assert len(expected) == 6
        many = await asyncio.gather(*(tokens(client, request(f"b{n}")) for n in range(8)))
        assert many == [expected] * 8
        async with asyncio.timeout(30):  # until the next report
            while not client.stats.blocks_total:
                await asyncio.sleep(0.05)

        with pytest.raises(DeadlineExceededError):
            await tokens(client, request("e", deadline=0.0))
        with pytest.raises(ModelError, match="none"):
            await client.check_adapter(AdapterRef("x", "/none", "d"))


async def test_closing_a_stream_ends_its_work(engine, tiny_model_dir):
    replicas = Local(Listener(engine))
    async with client_of(replicas, tiny_model_dir) as client:
        stream = client.generate(request("f", max_tokens=400))
        await anext(stream)
        await stream.aclose()
        await idle(replicas.listeners[0])

        # One of two continuations alone, too.
        stream = client.generate(request("g", n=2, max_tokens=60))
        await anext(stream)
        client.cancel("g", 0)
        async for delta in stream:
            if delta.finish_reason and delta.index == 1:
                break
        await stream.aclose()
        await idle(replicas.listeners[0])


async def test_a_replica_that_leaves_finishes_what_it_has_and_takes_no_more(engine, tiny_model_dir):
    leaving, other = Listener(engine), Listener(engine)
    replicas = Local(leaving, other)
    async with client_of(replicas, tiny_model_dir) as client:
        expected = await tokens(client, request("a", max_tokens=200))
        engine.gate.clear()
        stream = client.generate(request("b", max_tokens=200))
        begun = list((await anext(stream)).tokens)
        draining = asyncio.create_task(leaving.drain(60))
        await asyncio.sleep(0)
        replicas.calls = 0
        moved = asyncio.create_task(tokens(client, request("c", max_tokens=200)))
        while replicas.calls < 2:  # refused once
            replicas.gone = {0} if replicas.calls else set()
            await asyncio.sleep(0.01)
        engine.gate.set()
        assert begun + [t async for delta in stream for t in delta.tokens] == expected
        assert await moved == expected
        await asyncio.wait_for(draining, 60)
        assert leaving.requests == 0


async def test_lost_replicas_cost_no_request_that_has_not_begun(engine, tiny_model_dir):
    replicas = Local(Listener(engine), Listener(engine))
    async with client_of(replicas, tiny_model_dir) as client:
        expected = await tokens(client, request("a"))
        engine.gate.clear()
        stream = client.generate(request("b", max_tokens=400))
        await anext(stream)
        await replicas.listeners[0].close()
        engine.gate.set()
        with pytest.raises(EngineCrashedError):
            async for _ in stream:
                pass
        lost = asyncio.create_task(tokens(client, request("c")))
        replicas.calls = 0
        while replicas.calls < 1:
            await asyncio.sleep(0.01)
        replicas.gone = {0}
        assert await lost == expected
        await replicas.listeners[1].close()
        with pytest.raises(EngineUnavailableError):
            await tokens(client, request("d"))


async def test_who_has_not_the_key_or_another_protocol_is_refused(engine, tiny_model_dir, caplog):
    replicas = Local(Listener(engine))
    async with client_of(replicas, tiny_model_dir) as client:
        (address,) = replicas.addresses
        replicas.addresses = [msgspec.structs.replace(address, key="guessed")]
        with caplog.at_level(logging.WARNING), pytest.raises(EngineUnavailableError):
            await tokens(client, request("a"))
        assert "has not the replica's key" in caplog.text


async def test_full_replicas_refuse(engine, tiny_model_dir):
    replicas = Local(Listener(engine))
    async with client_of(replicas, tiny_model_dir) as client:

        async def full(*_):
            raise QueueFullError("full", retry_after=1.0)

        replicas.generate = full
        with pytest.raises(QueueFullError):
            await tokens(client, request("a"))
