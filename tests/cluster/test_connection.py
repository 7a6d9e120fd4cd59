"""Replicas as one engine: real engines behind real ports, some of which are lost on the way."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from contextlib import aclosing, asynccontextmanager, suppress

import msgspec
import pytest
import pytest_asyncio
from hagane.cluster import connection, links, listener, wire
from hagane.cluster.connection import ClusterConnection
from hagane.cluster.links import Link
from hagane.cluster.listener import Listener
from hagane.cluster.wire import Address, Hello, MessageStream, Outcome, ToReplica
from hagane.pool.channel import encode
from hagane.pool.client import EngineClient
from hagane.pool.messages import (
    AdapterRef,
    GenerateRequest,
    GrammarRef,
    RequestFailed,
)
from hagane.system.errors import (
    DeadlineExceededError,
    EngineCrashedError,
    EngineUnavailableError,
    InvalidRequestError,
    ModelError,
    QueueFullError,
)

from tests.support.engine import config
from tests.support.replicas import Gated, Local, request

# One engine for all.
pytestmark = pytest.mark.asyncio(loop_scope="module")


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


@pytest.fixture(autouse=True)
def open_gate():
    yield
    Gated.gate.set()


@pytest.fixture
def swift_retries(monkeypatch):
    monkeypatch.setattr(connection, "_RETRY_SECONDS", 0.001)


async def idle(served: Listener) -> None:
    async with asyncio.timeout(30):
        while served.requests or served.replica.report().stats.running:
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


async def test_a_grammar_that_the_engine_refuses_is_named_by_its_field(engine, tiny_model_dir):
    wanted = GrammarRef("digest", "start: nowhere", "response_format")
    async with client_of(Local(Listener(engine)), tiny_model_dir) as client:
        with pytest.raises(InvalidRequestError, match="nowhere") as caught:
            await tokens(client, request("g", grammar=wanted))
    assert caught.value.param == "response_format"


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


async def test_lost_replicas_cost_no_request_that_has_not_begun(
    engine, tiny_model_dir, swift_retries
):
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
        replicas.calls, replicas.gone = 0, set()
        assert await tokens(client, request("c")) == expected
        assert replicas.calls == 2
        await replicas.listeners[1].close()
        with pytest.raises(EngineUnavailableError):
            await tokens(client, request("d"))


@pytest.mark.parametrize("key", ["guessed", "ключ"])
async def test_who_has_not_the_key_is_refused(engine, tiny_model_dir, caplog, swift_retries, key):
    replicas = Local(Listener(engine))
    async with client_of(replicas, tiny_model_dir) as client:
        (address,) = replicas.addresses
        replicas.addresses = [msgspec.structs.replace(address, key=key)]
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


@asynccontextmanager
async def served(engine):
    """A listener and where it listens."""
    opened = Listener(engine)
    address = await opened.open("127.0.0.1")
    try:
        yield opened, address
    finally:
        await opened.close()


@asynccontextmanager
async def peer(address: Address):
    """A bare connection to a listener."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def dropped(reader: asyncio.StreamReader) -> bool:
    """Whether the other side ends the connection, without a word."""
    async with asyncio.timeout(10):
        with suppress(ConnectionResetError):
            return await reader.read() == b""
        return True


async def test_who_speaks_another_protocol_is_refused(engine, monkeypatch):
    def older(key):
        return Hello(key, wire.PROTOCOL + 1)

    monkeypatch.setattr(links, "Hello", older)
    async with served(engine) as (_, address):
        with pytest.raises(ConnectionRefusedError, match=f"protocol {wire.PROTOCOL + 1} and"):
            await Link.open(address)


async def test_a_stranger_s_large_message_is_not_waited_for(engine, monkeypatch):
    monkeypatch.setattr(listener, "HANDSHAKE_SECONDS", 60)
    async with served(engine) as (_, address), peer(address) as (reader, writer):
        writer.write(struct.pack("<I", 1 << 20))
        assert await dropped(reader)


async def test_large_messages_are_taken_from_who_has_the_key(engine):
    async with served(engine) as (opened, address):
        link = await Link.open(address)
        got: list[Outcome] = []
        opened.draining = True
        long = msgspec.structs.replace(request("long"), prompt=tuple(range(5000)))
        await asyncio.wait_for(link.generate(long, got.append), 10)
        assert [failure.code for outcome in got for failure in outcome.failures] == [
            "engine_unavailable"
        ]
        await link.close()

        async with peer(address) as (reader, writer):
            writer.write(encode(Hello(address.key)))
            await reader.readexactly(4)
            writer.write(struct.pack("<I", 1 << 31))
            await asyncio.wait_for(reader.read(), 10)


async def test_silent_and_slow_strangers_are_dropped(engine, monkeypatch):
    monkeypatch.setattr(listener, "HANDSHAKE_SECONDS", 0.2)
    async with served(engine) as (_, address):
        async with peer(address) as (reader, _):
            assert await dropped(reader)
        async with peer(address) as (reader, writer):

            async def drip():
                for byte in encode(Hello("k" * 900)):
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.05)

            dripping = asyncio.create_task(drip())
            assert await dropped(reader)
            dripping.cancel()


async def test_strangers_are_few(engine, monkeypatch):
    monkeypatch.setattr(listener, "_MOST_STRANGERS", 1)
    async with served(engine) as (_, address):
        known = await Link.open(address)
        async with peer(address), peer(address) as (reader, _):
            assert await dropped(reader)
        await known.close()
        async with asyncio.timeout(10):  # the first of them has left
            while True:
                with suppress(OSError):
                    await (await Link.open(address)).close()
                    break
                await asyncio.sleep(0.01)


async def test_closing_does_not_wait_for_who_does_not_read(monkeypatch):
    monkeypatch.setattr(wire, "_CLOSE_SECONDS", 0.1)
    ours, theirs = socket.socketpair()
    with theirs:
        stream = MessageStream(*await asyncio.open_connection(sock=ours), ToReplica)
        stream.send(Outcome(failures=(RequestFailed("a", "invalid_request", "x" * (8 << 20)),)))
        assert stream.unsent_bytes
        await asyncio.wait_for(stream.close(), 5)


async def test_an_edge_that_does_not_read_is_cut_off(engine, monkeypatch, caplog):
    monkeypatch.setattr(listener, "_MOST_UNSENT_BYTES", 1 << 20)
    async with served(engine) as (opened, address), peer(address) as (reader, writer):
        writer.write(encode(Hello(address.key)))
        await reader.readexactly(4)
        (session,) = opened._sessions
        with caplog.at_level(logging.WARNING):
            session._fail("a", "invalid_request", "x" * (16 << 20))
            async with asyncio.timeout(10):
                while opened._sessions:
                    await asyncio.sleep(0.01)
        host, port = writer.get_extra_info("sockname")
        assert f"the edge at ('{host}', {port}) left" in caplog.text


async def test_a_link_that_cannot_open_leaves_no_connection(monkeypatch):
    monkeypatch.setattr(links, "HANDSHAKE_SECONDS", 0.2)
    ended = asyncio.Event()

    async def mute(reader, writer):
        with suppress(ConnectionResetError):
            await reader.read()
        ended.set()
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(TimeoutError) as kept:  # what it refers to is not collected
            await Link.open(Address("127.0.0.1", port, "key"))
        assert kept
        await asyncio.wait_for(ended.wait(), 5)


async def test_figures_are_renewed_for_who_asks(engine):
    replicas = Local(Listener(engine))
    joined = ClusterConnection(replicas)
    await joined.refresh(30)
    before = joined.reports[0].stats.steps
    async with aclosing(engine.generate(request("renewed"), None)) as outcomes:
        async for _ in outcomes:
            pass
    assert joined.reports[0].stats.steps == before, "nobody asked"
    await joined.refresh(30)
    assert joined.reports[0].stats.steps > before

    async def silent():
        await asyncio.Event().wait()

    replicas.reports = silent
    await joined.refresh(0.05)
    assert joined.reports[0].stats.steps > before, "those of before, not none"
