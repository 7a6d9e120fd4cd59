"""Shared by the scheduler's tests: a small scheduler, requests, a step without a model."""

from __future__ import annotations

import itertools

from hagane.engine.cache.blocks import KVCache
from hagane.engine.schedule.plan import Sampled, Schedule
from hagane.engine.schedule.scheduler import Scheduler
from hagane.pool.messages import GenerateRequest, SamplingParams

FILLER = 1_000


def make(
    blocks: int = 16,
    *,
    max_batch_tokens: int = 16,
    max_sequences: int = 4,
    max_waiting: int = 8,
    context_length: int = 32,
) -> Scheduler:
    kv = KVCache(blocks, block_size=4)
    return Scheduler(kv, max_batch_tokens, max_sequences, max_waiting, context_length)


_base = itertools.count(0, 100)


def request(name: str, prompt: int | tuple[int, ...] = 3, **keywords) -> GenerateRequest:
    """A request of `prompt` tokens nobody else has (or of given ones)."""
    fields = {"n", "priority", "deadline", "cache_salt"}
    sampling = {key: value for key, value in keywords.items() if key not in fields}
    start = next(_base)
    return GenerateRequest(
        request_id=name,
        prompt=tuple(range(start, start + prompt)) if isinstance(prompt, int) else prompt,
        sampling=SamplingParams(**{"max_tokens": 4, **sampling}),
        **{key: value for key, value in keywords.items() if key in fields},
    )


def step(
    scheduler: Scheduler, now: float = 0.0, token: int = FILLER
) -> tuple[Schedule, list[Sampled]]:
    schedule = scheduler.schedule(now)
    results = land(scheduler, schedule, [token] * len(schedule.samplers))
    scheduler.check()
    return schedule, results


def land(scheduler: Scheduler, schedule: Schedule, tokens: list[int]) -> list[Sampled]:
    """Finish a step where nothing overlaps: it counts, and its tokens are known at once."""
    scheduler.advance(schedule)
    return scheduler.update(schedule, [(token,) for token in tokens])


def drain(scheduler: Scheduler, now: float = 0.0) -> list[Sampled]:
    results: list[Sampled] = []
    while scheduler.has_work:
        results += step(scheduler, now)[1]
    assert scheduler.kv.used == 0
    return results


def shape(schedule: Schedule) -> list[tuple[str, int, int]]:
    return [(chunk.sequence.request_id, chunk.start, chunk.length) for chunk in schedule.chunks]
