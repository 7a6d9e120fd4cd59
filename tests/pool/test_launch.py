"""Engine processes that are under way before their client is."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import psutil
from hagane.pool.client import EngineClient
from hagane.pool.launch import launch

from tests.support.engine import config


def test_a_client_takes_over_a_launched_process_and_starts_the_next_itself(tiny_model_dir):
    async def scenario() -> None:
        launched = launch(config(tiny_model_dir))
        client = EngineClient(config(tiny_model_dir), launched)
        await client.start()
        try:
            assert (await client.ready()).pid == launched.process.pid
            launched.process.kill()
            async with asyncio.timeout(60):
                while client.restarts == 0 or client.info is None:
                    await asyncio.sleep(0.02)
            assert client.info.pid != launched.process.pid
        finally:
            await client.stop(5)

    asyncio.run(scenario())


def test_a_client_stopped_while_its_engine_starts_stays_stopped(tiny_model_dir):
    """The Shutdown comes when it has its config and is about to report that it is ready."""

    async def scenario() -> EngineClient:
        settings = config(tiny_model_dir, kv_cache_memory=1 << 30)
        launched = launch(settings)
        client = EngineClient(settings, launched)
        await client.start()
        engine = psutil.Process(launched.process.pid)
        async with asyncio.timeout(60):
            # More than its imports take: pages of its cache.
            while client.state == "starting" and engine.memory_info().rss < 400 << 20:
                await asyncio.sleep(0.001)
        await asyncio.wait_for(client.stop(30), 60)
        return client

    client = asyncio.run(scenario())
    assert (client.state, client.restarts) == ("stopped", 0)


def test_launching_waits_for_no_heavy_import():
    heavy = {"torch", "fastapi", "numpy"}
    program = f"import hagane.pool.launch, sys; print({heavy} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert output.stdout.decode().strip() == "set()"
