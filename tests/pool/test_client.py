"""Engines that crash or hang: noticed, ended, counted, and started again."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import asynccontextmanager

import pytest
from hagane.pool.client import EngineClient
from hagane.pool.crashes import CrashHistory
from hagane.pool.launch import launch
from hagane.pool.messages import GenerateRequest, SamplingParams
from hagane.pool.process import Ending
from hagane.system.errors import EngineCrashedError, EngineUnavailableError

from tests.support.engine import config


@asynccontextmanager
async def running(model, **changes):
    client = EngineClient(config(model, **changes))
    await client.start()
    try:
        await client.ready()
        yield client
    finally:
        await client.stop(1)


def request(name: str, tokens: int = 4) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    return GenerateRequest(request_id=name, prompt=tuple(range(40, 50)), sampling=sampling)


async def answer(client: EngineClient, name: str) -> list[int]:
    return [token async for delta in client.generate(request(name)) for token in delta.tokens]


async def until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def test_an_engine_that_stands_still_is_killed_and_an_idle_one_is_not(tiny_model_dir):
    async def scenario() -> None:
        async with running(tiny_model_dir, timeout=2.0) as client:
            before = await answer(client, "first")
            pid = client.info.pid
            await asyncio.sleep(2.5)
            assert await answer(client, "late") == before
            assert client.info.pid == pid and not client.crashes.counts
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(EngineCrashedError):
                await asyncio.wait_for(answer(client, "hanging"), 30)
            assert client.state == "restarting"
            with pytest.raises(EngineUnavailableError, match="restarting"):
                await answer(client, "early")
            await asyncio.wait_for(client.ready(), 60)
            assert client.info.pid != pid
            assert client.crashes.counts == {"hung": 1}
            assert await answer(client, "second") == before

    asyncio.run(scenario())


def test_isolated_crashes_cost_a_restart_each_and_no_growing_pause(tiny_model_dir, caplog):
    async def scenario() -> None:
        async with running(tiny_model_dir, context_length=512) as client:
            for turn in range(2):
                deltas = client.generate(request(f"poison {turn}", tokens=450))
                await anext(deltas)
                os.kill(client.info.pid, signal.SIGKILL)
                with pytest.raises(EngineCrashedError):
                    async for _ in deltas:
                        pass
                await until(lambda: client.info is None)
                await asyncio.wait_for(client.ready(), 60)
            assert client.restarts == 2
            assert client.crashes.counts == {"killed": 2}

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert "restarting the engine in 0.25 s" in caplog.text
    assert "restarting the engine in 0.50 s" not in caplog.text
    assert "poison 1" in caplog.text and "in flight at 2 crashes" in caplog.text


def test_engines_that_die_as_they_start_get_growing_pauses(tmp_path, caplog):
    """An unknown log level ends the process before it loads anything."""

    async def scenario() -> None:
        client = EngineClient(config(tmp_path, log_level="shout"))
        await client.start()
        await until(lambda: "restarting the engine in 0.50 s" in caplog.text)
        await client.stop(1)

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert "exit status 1" in caplog.text
    assert "restarting the engine in 0.25 s" in caplog.text


def test_supervision_outlives_a_process_that_cannot_be_taken_over(tiny_model_dir, caplog):
    async def scenario() -> None:
        launched = launch(config(tiny_model_dir))
        launched.connection.close()
        client = EngineClient(config(tiny_model_dir), launched)
        await client.start()
        await client.ready()
        assert (client.supervision.failures, client.restarts) == (1, 1)
        assert not client.supervision.failing
        assert len(await answer(client, "first")) == 4
        await client.stop(1)
        assert launched.process.wait(10) == 0, "one that nobody takes over ends by itself"

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert "engine supervision failed" in caplog.text
    assert "Traceback" in caplog.text


def test_requests_in_flight_at_several_crashes_are_named_first(caplog):
    history = CrashHistory()
    with caplog.at_level(logging.ERROR):
        history.record(Ending("exited", 1), [request("suspect"), request("other", tokens=3)])
        history.record(Ending("killed", -11), [request("new", tokens=7), request("again")])
    assert history.counts == {"exited": 1, "killed": 1}
    last = caplog.records[-1].getMessage()
    assert "SIGSEGV" in last
    assert last.index("again") < last.index("new")
    assert last.count("in flight at 2 crashes") == 1
