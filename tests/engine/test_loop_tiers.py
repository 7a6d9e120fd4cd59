"""Memory below the KV cache changes how long answers take, and not one bit of them."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest
from hagane.engine.cache import setup, tiers
from hagane.kernels import cpu
from hagane.pool.messages import GenerateRequest, SamplingParams
from hagane.system.errors import ConfigurationError

from tests.support.engine import RunningEngine, config, make_adapter

PROMPT = tuple(range(3, 100))


def fill(engine: RunningEngine, count: int = 12) -> None:
    """Prompts enough to drive all others out of the pool."""
    for number in range(count):
        name = f"other {number}"
        engine.ask(name, tuple((7 * number + i) % 290 + 5 for i in range(100)), tokens=2)
        engine.wait(name)


def small(model: Path, **changes):
    """A pool of one context: eight blocks of float32 keys and values of the tiny model."""
    return config(model, **{"kv_cache_memory": 1 << 17, "max_waiting": 64, **changes})


def settle(engine: RunningEngine, condition) -> None:
    """Wait for a statistic; the engine reports them with its next message."""
    number = 0
    while not condition(engine.stats.tiers):
        number += 1
        assert number < 500, engine.stats.tiers
        time.sleep(0.02)
        engine.ask(f"probe {number}", (5, 6), tokens=1)
        engine.wait(f"probe {number}")


def test_evicted_blocks_come_back_from_host_memory(tiny_model_dir: Path) -> None:
    with RunningEngine(small(tiny_model_dir, kv_cache_host_memory=8 << 20)) as engine:
        engine.ask("a", PROMPT)
        (first,) = engine.wait("a")
        fill(engine)
        settle(engine, lambda tiers: tiers.host_blocks > 12)
        engine.ask("b", PROMPT)
        (again,) = engine.wait("b")
        assert engine.stats.tiers.restored >= 6
    assert first.cached == 0 and again.cached == 96
    assert (first.tokens, first.logprobs) == (again.tokens, again.logprobs)


def test_without_it_they_are_computed_again(tiny_model_dir: Path) -> None:
    with RunningEngine(small(tiny_model_dir)) as engine:
        engine.ask("a", PROMPT)
        engine.wait("a")
        fill(engine)
        engine.ask("b", PROMPT)
        (again,) = engine.wait("b")
    assert again.cached == 0


def on_disk(model: Path, directory: Path, **changes):
    return small(model, kv_cache_disk=str(directory), kv_cache_host_memory=2 << 20, **changes)


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if len(path.name) == 64]


def answer_once(settings, prompt: tuple[int, ...] = PROMPT):
    with RunningEngine(settings) as engine:
        engine.ask("a", prompt)
        (answer,) = engine.wait("a")
        settle(engine, lambda tiers: tiers.written >= tiers.disk_blocks >= 6)
        return answer, engine.stats.tiers


def test_blocks_outlive_the_engine(tiny_model_dir: Path, tmp_path: Path) -> None:
    first, _ = answer_once(on_disk(tiny_model_dir, tmp_path))
    with RunningEngine(on_disk(tiny_model_dir, tmp_path)) as engine:
        engine.ask("a", PROMPT)
        (again,) = engine.wait("a")
        assert engine.stats.tiers.loaded == engine.stats.tiers.restored == 6
    assert (first.cached, again.cached) == (0, 96)
    assert (first.tokens, first.logprobs) == (again.tokens, again.logprobs)


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"block_size": 32}])
def test_other_bits_are_other_blocks(tiny_model_dir: Path, tmp_path: Path, change) -> None:
    answer_once(on_disk(tiny_model_dir, tmp_path))
    with RunningEngine(on_disk(tiny_model_dir, tmp_path, **change)) as engine:
        engine.ask("a", PROMPT)
        (again,) = engine.wait("a")
    assert again.cached == 0


def test_another_build_finds_nothing(tiny_model_dir: Path, tmp_path: Path, monkeypatch) -> None:
    answer_once(on_disk(tiny_model_dir, tmp_path))
    monkeypatch.setattr(setup, "__version__", "another")
    with RunningEngine(on_disk(tiny_model_dir, tmp_path)) as engine:
        engine.ask("a", PROMPT)
        (again,) = engine.wait("a")
    assert again.cached == 0


def test_no_more_is_copied_than_may_be_under_way(tiny_model_dir: Path, monkeypatch) -> None:
    monkeypatch.setattr(tiers, "_MOST_UNDER_WAY", 3 * 8192)
    with RunningEngine(small(tiny_model_dir, kv_cache_host_memory=8 << 20)) as engine:
        copied = []
        read = engine.engine.runner.read_blocks
        monkeypatch.setattr(
            engine.engine.runner, "read_blocks", lambda b: copied.append(len(b)) or read(b)
        )
        fill(engine)
        settle(engine, lambda tiers: tiers.host_blocks > 3)
        assert max(copied) <= 3 and engine.stats.tiers.dropped > 0


def test_another_model_finds_nothing(tiny_model_dir: Path, tmp_path: Path) -> None:
    answer_once(on_disk(tiny_model_dir, tmp_path / "kv"))
    other = tmp_path / "other"
    shutil.copytree(tiny_model_dir, other)
    weights = next(other.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(data)
    with RunningEngine(on_disk(other, tmp_path / "kv")) as engine:
        engine.ask("a", PROMPT)
        (again,) = engine.wait("a")
    assert again.cached == 0


def test_damaged_and_missing_files_are_computed_again(tiny_model_dir: Path, tmp_path: Path) -> None:
    first, _ = answer_once(on_disk(tiny_model_dir, tmp_path))
    with RunningEngine(on_disk(tiny_model_dir, tmp_path)) as engine:
        missing, *damaged = files(tmp_path)
        missing.unlink()
        for path in damaged:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 255
            path.write_bytes(data)
        engine.ask("a", PROMPT)
        (again,) = engine.wait("a")
        assert engine.stats.tiers.lost == 6
    assert (first.tokens, first.logprobs) == (again.tokens, again.logprobs)


def test_a_disk_that_refuses_costs_nobody_an_answer(tiny_model_dir: Path, tmp_path: Path) -> None:
    with RunningEngine(on_disk(tiny_model_dir, tmp_path / "kv")) as engine:
        shutil.rmtree(tmp_path / "kv")
        (tmp_path / "kv").write_text("a file in the directory's place")
        engine.ask("a", PROMPT)
        (first,) = engine.wait("a")
        settle(engine, lambda tiers: tiers.dropped >= 6)
    assert first.finished and not first.error


def test_the_disk_is_bounded(tiny_model_dir: Path, tmp_path: Path) -> None:
    answer, tiers = answer_once(on_disk(tiny_model_dir, tmp_path))
    size = files(tmp_path)[0].stat().st_size
    shutil.rmtree(tmp_path)
    bounded = on_disk(tiny_model_dir, tmp_path, kv_cache_disk_memory=7 * size + 5)
    with RunningEngine(bounded) as engine:
        fill(engine, 5)
        settle(engine, lambda tiers: tiers.written > 20)
        assert engine.stats.tiers.disk_blocks == 7
    assert len(files(tmp_path)) == 7
    assert answer.finished and tiers.disk_blocks >= 6


def requests(adapter) -> list[GenerateRequest]:
    """Conversations: beginnings that are shared by chance, in any order."""
    rng = random.Random(3)
    stems = [tuple(rng.randrange(3, 300) for _ in range(70)) for _ in range(5)]
    made = []
    for name in range(42):
        length = rng.choice([20, 40, 70])
        tail = tuple(rng.randrange(3, 300) for _ in range(rng.randint(1, 20)))
        sampling = SamplingParams(
            max_tokens=rng.choice([1, 8, 30]), temperature=rng.choice([0.0, 1.0]),
            seed=rng.randint(0, 3), logprobs=0, prompt_logprobs=rng.choice([None, None, None, 0]),
        )  # fmt: skip
        made.append(
            GenerateRequest(
                request_id=str(name),
                prompt=rng.choice(stems)[:length] + tail,
                sampling=sampling,
                n=rng.choice([1, 1, 2]),
                adapter=rng.choice([None, None, adapter]),
                cache_salt=rng.choice(["", "", "tenant"]),
            )
        )
    return made


def answers(settings, asked: list[GenerateRequest], **parts):
    with RunningEngine(settings, **parts) as engine:
        for start in range(0, len(asked), 6):
            batch = asked[start : start + 6]
            for request in batch:
                engine.send(request)
            engine.wait(*(request.request_id for request in batch))
        return dict(engine.answers), engine.stats


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, {}),
        ({}, {"overlap": True}),
        ({"dtype": "bfloat16", "quantize": "int8", "kv_cache_dtype": "int8"}, {}),
    ],
    ids=["float32", "ahead", "int8"],
)
@pytest.mark.skipif(not cpu.available(), reason="kernels not built")
def test_answers_have_the_same_bits(tiny_model_dir, tmp_path, changes, parts) -> None:
    adapter = make_adapter(tmp_path / "adapter", tiny_model_dir, 1)
    asked = requests(adapter)
    memory = 40_000 if changes else 1 << 17
    plain, _ = answers(small(tiny_model_dir, kv_cache_memory=1 << 22, **changes), asked)
    settings = on_disk(tiny_model_dir, tmp_path / "kv", kv_cache_memory=memory, **changes)
    for _ in range(2):
        tiered, stats = answers(settings, asked, **parts)
        for request in asked:
            one, other = plain[request.request_id], tiered[request.request_id]
            assert one.finished and other.finished, (one.error, other.error)
            assert sorted(one.logprobs) == sorted(other.logprobs), request
            assert one.tokens == other.tokens or request.n > 1, request
    assert stats.tiers.restored > 20 and stats.tiers.loaded > 10, stats.tiers


def test_they_need_the_prefix_cache(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match="prefix_caching"):
        RunningEngine(small(tiny_model_dir, kv_cache_host_memory=1 << 20, prefix_caching=False))
