"""Engines of standalone models: started when asked for, bounded, stopped."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from hagane.kernels import cpu
from hagane.pool.client import EngineClient
from hagane.pool.messages import GenerateRequest, SamplingParams
from hagane.pool.models import Fleet, Residency
from hagane.system.errors import EngineUnavailableError
from hagane.system.machine import available_memory, usable_cores

from tests.support.engine import config


@pytest.fixture
def models(tiny_model_dir, tmp_path) -> list[Path]:
    copies = [tmp_path / "job" / name for name in ("a", "b")]
    for copy in copies:
        shutil.copytree(tiny_model_dir, copy)
    return copies


@asynccontextmanager
async def running(model: Path, memory=available_memory, **changes):
    limits = {"models": 1, "cache_bytes": 1 << 20, "gpu_memory_fraction": 0.1, "idle_seconds": 60}
    base = config(model, draft_model=str(model), speculation="draft")
    fleet = Fleet("base", base, Residency(**(limits | changes)), memory=memory)
    try:
        yield fleet
    finally:
        await fleet.stop(5)


async def tokens_of(engine: EngineClient) -> list[int]:
    sampling = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    request = GenerateRequest(request_id="r", prompt=tuple(range(40, 50)), sampling=sampling)
    return [token async for delta in engine.generate(request) for token in delta.tokens]


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


def test_one_unused_makes_room_and_requests_keep_theirs(tiny_model_dir, models):
    first, second = models

    async def scenario() -> None:
        async with running(tiny_model_dir) as fleet:
            async with fleet.engine("a", first) as engine:
                answer, pid = await tokens_of(engine), engine.info.pid
                # The base's draft may know other tokens.
                assert engine.config.draft_model is None
                assert engine.config.speculation == "auto"
                # Bounded, but never below one context of 512 tokens.
                assert engine.info.blocks_total * engine.info.block_size >= 512
                with pytest.raises(EngineUnavailableError, match=r"'b'.*resident_models allows 1"):
                    await fleet.engine("b", second).__aenter__()
            async with fleet.engine("b", second) as engine:
                assert not psutil.pid_exists(pid)
                assert await tokens_of(engine) == answer
                assert [resident.name for resident in fleet.residents] == ["base", "b"]
                releasing = asyncio.create_task(fleet.release(second.parent))
                await asyncio.sleep(0.1)
                assert not releasing.done()
                assert await tokens_of(engine) == answer
            await releasing
            assert [resident.name for resident in fleet.residents] == ["base"]

    asyncio.run(scenario())


@pytest.mark.skipif(not cpu.available(), reason="the kernels were not built")
def test_the_thread_that_drives_the_kernels_has_a_core_of_its_own(tiny_model_dir):
    async def scenario() -> None:
        async with running(tiny_model_dir) as fleet:
            await fleet.start()
            await fleet.base.ready()
            assert len(await tokens_of(fleet.base)) == 4
            assert psutil.Process(fleet.base.info.pid).cpu_affinity() == usable_cores()[:1]

    asyncio.run(scenario())


class _FailingOnce(Residency):
    """Bounds whose idle time cannot be read at first."""

    def __getattribute__(self, name):
        if name == "idle_seconds" and (reads := object.__getattribute__(self, "__dict__")):
            reads["reads"] = reads.get("reads", 0) + 1
            if reads["reads"] == 1:
                raise OSError("no clock")
        return object.__getattribute__(self, name)


def test_idle_models_are_stopped_even_after_a_round_that_failed_but_pinned_ones_stay(
    tiny_model_dir, models
):
    async def scenario() -> None:
        residency = _FailingOnce(2, 1 << 20, 0.1, 0.2)
        fleet = Fleet("base", config(tiny_model_dir), residency)
        await fleet.start()
        await fleet.load("a", models[0], pinned=True)
        async with fleet.engine("b", models[1]) as engine:
            pid = engine.info.pid
        await until(lambda: len(fleet.residents) == 2 and not psutil.pid_exists(pid))
        assert [resident.name for resident in fleet.residents] == ["base", "a"]
        assert [loop.failures for loop in fleet.loops()] == [1, 0, 0]
        await fleet.stop(5)

    asyncio.run(scenario())


def test_what_cannot_start_is_refused_with_the_reason(tiny_model_dir, models):
    (models[0] / "model.safetensors").unlink()

    async def scenario() -> None:
        free = available_memory()
        async with running(tiny_model_dir, memory=lambda: free) as fleet:
            with pytest.raises(EngineUnavailableError, match=r"'a' cannot be served.*safetensors"):
                await fleet.engine("a", models[0]).__aenter__()
            assert [resident.name for resident in fleet.residents] == ["base"]
            free = 1 << 20
            with pytest.raises(EngineUnavailableError, match=r"0\.4 GB and 0\.0 GB .*quantize"):
                await fleet.engine("b", models[1]).__aenter__()
            await fleet.drain(0)
            with pytest.raises(EngineUnavailableError, match="shutting down"):
                await fleet.engine("b", models[1]).__aenter__()

    asyncio.run(scenario())


def test_weights_share_a_budget_and_pinned_models_stay(tiny_model_dir, models):
    first, second = models
    size = sum(file.stat().st_size for file in first.glob("*.safetensors"))

    async def scenario() -> None:
        async with running(tiny_model_dir, models=5, weight_bytes=int(1.5 * size)) as fleet:
            await fleet.load("a", first, pinned=True)
            with pytest.raises(EngineUnavailableError, match=r"resident_memory allows .* GB"):
                await fleet.engine("b", second).__aenter__()
            await fleet.load("a", first, pinned=False)
            async with fleet.engine("b", second) as engine:
                assert len(await tokens_of(engine)) == 4
            assert [resident.name for resident in fleet.residents] == ["base", "b"]
            await fleet.release(second)
            assert [resident.name for resident in fleet.residents] == ["base"]

    asyncio.run(scenario())
