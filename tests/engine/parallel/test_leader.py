"""Processes that compute one model together, against one that computes it alone."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from hagane.engine.parallel.leader import make_runner
from hagane.kernels import cpu
from hagane.pool.messages import AdapterRef
from hagane.system.errors import ConfigurationError

from tests.support.engine import Answer, RunningEngine, config, make_adapter
from tests.support.server import Server, start_server, stop_server

pytestmark = [
    pytest.mark.skipif(not cpu.available(), reason="kernels not built"),
    pytest.mark.slow,
]

PROMPTS = (tuple(range(40, 75)), tuple(range(10, 70)), (5, 6, 7))


@pytest.fixture(autouse=True)
def cores() -> Iterator[None]:
    """Ranks have cores of their own, the first one too; other tests have all."""
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(scope="module")
def adapters(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[AdapterRef]:
    directory = tmp_path_factory.mktemp("adapters")
    plain = make_adapter(directory / "plain", tiny_model_dir, 0)
    scaled = make_adapter(directory / "dora", tiny_model_dir, 1, rank=3, dora=True)
    return [plain, scaled]


def ask(model: Path, ranks: int, adapters: list[AdapterRef], **changes) -> list[Answer]:
    """Greedy answers to all prompts, by the base and by every adapter, in one batch."""
    with RunningEngine(config(model, tensor_parallel=ranks, **changes)) as engine:
        names = []
        for number, prompt in enumerate(PROMPTS):
            for adapter in (None, *adapters):
                names.append(f"{number} {adapter and adapter.name}")
                engine.ask(names[-1], prompt, adapter)
        return engine.wait(*names)


@pytest.mark.parametrize(
    ("ranks", "memory"),
    [(2, 1 << 22), (2, 60 << 10), (4, 1 << 22)],
    ids=["room", "preemption", "four"],
)
def test_ranks_say_what_one_says(tiny_model_dir, adapters, ranks, memory):
    """Four ranks hold copies of the two key and value heads."""
    room = {"kv_cache_memory": memory, "context_length": 80}
    alone = ask(tiny_model_dir, 1, adapters, **room)
    together = ask(tiny_model_dir, ranks, adapters, **room)
    for one, two in zip(alone, together, strict=True):
        assert one.error is None and two.error is None
        assert two.tokens == one.tokens
        assert two.logprobs == pytest.approx(one.logprobs, abs=1e-4)
    assert len({tuple(answer.tokens) for answer in together}) > len(PROMPTS)


def complete(server: Server) -> str:
    body = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def other_ranks(server: Server) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(server.process.pid).children(recursive=True):
        # Some are ending.
        with contextlib.suppress(psutil.NoSuchProcess):
            if "hagane.engine.parallel" in child.cmdline():
                found.append(child)
    return found


def test_a_server_outlives_a_rank_that_dies(tiny_model_dir, tmp_path):
    flags = ("--data-dir", str(tmp_path / "data"), "--dtype", "float32")
    alone = start_server(tiny_model_dir, tmp_path / "alone.log", *flags)
    try:
        alone.wait_ready()
        expected = complete(alone)
    finally:
        stop_server(alone)
    server = start_server(tiny_model_dir, tmp_path / "log", *flags, "--tensor-parallel", "2")
    try:
        server.wait_ready()
        assert complete(server) == expected
        (rank,) = other_ranks(server)
        rank.kill()
        deadline = time.monotonic() + 60
        while not (others := other_ranks(server)) or others == [rank]:
            assert time.monotonic() < deadline, server.log.read_text()
            time.sleep(0.05)
        server.wait_ready()
        assert complete(server) == expected
        (rank,) = other_ranks(server)
    finally:
        stop_server(server)
    assert not rank.is_running()
    assert "rank 1 ended" in server.log.read_text()


def test_sizes_that_cannot_be_divided_end_the_start(tiny_model_dir, tmp_path):
    flags = ("--data-dir", str(tmp_path / "data"), "--tensor-parallel", "3")
    server = start_server(tiny_model_dir, tmp_path / "log", *flags)
    try:
        assert server.process.wait(60) != 0
    finally:
        server.process.kill()
    assert "does not divide the model's 4 attention heads" in server.log.read_text()


def test_tiers_below_the_cache_are_refused(tiny_model_dir):
    with pytest.raises(ConfigurationError, match="tensor_parallel at 1"):
        make_runner(config(tiny_model_dir, tensor_parallel=2, kv_cache_host_memory=1 << 20), print)
