"""Requests of idle priority in the engine: their steps are left for others, and done again."""

from __future__ import annotations

import random
from itertools import count

import msgspec
import pytest
from hagane.kernels import cpu
from hagane.pool.messages import IDLE_PRIORITY, GenerateRequest, SamplingParams

from tests.support.engine import RunningEngine, config, make_adapter
from tests.support.turns import Loop, random_request


def request(name: str, *, idle: bool, tokens: int = 8, adapter=None) -> GenerateRequest:
    return GenerateRequest(
        request_id=name,
        prompt=tuple(range(40, 60)),
        sampling=SamplingParams(max_tokens=tokens, temperature=0.0),
        priority=IDLE_PRIORITY if idle else 0,
        adapter=adapter,
    )


def arrive_at(loop: Loop, asked: int, message: msgspec.Struct) -> None:
    """Let a message come when the engine looks for the `asked`-th time from now, counted from 1."""
    looks = count(1)
    loop.said.receive = lambda timeout: [message] if next(looks) == asked else []


def begin(loop: Loop, message: GenerateRequest) -> int:
    """Run it until its first tokens are there; returns how often it has said something."""
    loop.handle(message)
    while (message.request_id, 0) not in loop.said.deltas:
        loop.turn()
    return len(loop.said.deltas[message.request_id, 0])


@pytest.mark.skipif(not cpu.available(), reason="kernels not built")
def test_a_step_is_left_for_a_request_that_arrives_within_it(tiny_model_dir):
    loop = Loop(tiny_model_dir)
    known = begin(loop, request("batch", idle=True))
    arrive_at(loop, 1, request("chat", idle=False))
    loop.turn()
    assert len(loop.said.deltas["batch", 0]) == known
    loop.engine.receive(0.0)
    loop.turn()
    assert len(loop.said.deltas["chat", 0]) == 1
    while loop.engine.scheduler.stats().running > 1:
        loop.turn()
        assert len(loop.said.deltas["batch", 0]) == known
    loop.drain()
    answers = loop.said.answers()
    assert answers["batch", 0] == answers["chat", 0]


def test_others_of_idle_priority_leave_a_step_alone(tiny_model_dir):
    loop = Loop(tiny_model_dir)
    known = begin(loop, request("batch", idle=True))
    arrive_at(loop, 1, request("eval", idle=True))
    loop.turn()
    assert len(loop.said.deltas["batch", 0]) == known + 1
    loop.engine.receive(0.0)
    loop.drain()
    assert len(loop.said.answers()) == 2


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("ahead", [False, True], ids=["in turn", "ahead"])
def test_answers_are_the_same_however_often_steps_are_left(tiny_model_dir, seed, ahead):
    chance = random.Random(seed)
    requests = [random_request(chance, f"r{number}", []) for number in range(14)]
    idle = [msgspec.structs.replace(r, priority=IDLE_PRIORITY) for r in requests[:7]]
    size = {"kv_cache_memory": 1 << 17, "max_batch_tokens": 32}
    plain, loop = Loop(tiny_model_dir), Loop(tiny_model_dir, ahead=ahead, **size)
    for each in requests:
        plain.handle(each)
        plain.drain()
    for each in idle:
        loop.handle(each)
    for each in requests[7:]:
        for _ in range(chance.randrange(1, 12)):
            loop.turn()
        arrive_at(loop, chance.choice([1, 2]), each)
        loop.turn()
        loop.engine.receive(0.0)
        loop.engine.receive(0.0)
    loop.drain()
    assert loop.said.answers() == plain.said.answers()


def test_idle_requests_give_back_the_adapter_whose_room_another_waits_for(tiny_model_dir, tmp_path):
    adapters = [make_adapter(tmp_path / name, tiny_model_dir, 1) for name in "ab"]
    with RunningEngine(config(tiny_model_dir)) as engine:
        engine.send(request("probe", idle=False, adapter=adapters[0]))
        engine.wait("probe")
        size = engine.stats.adapters.nbytes
    with RunningEngine(config(tiny_model_dir, adapter_memory=size)) as engine:
        engine.send(request("batch", idle=True, tokens=90, adapter=adapters[0]))
        engine.send(request("long", idle=False, tokens=100))
        engine.send(request("chat", idle=False, adapter=adapters[1]))
        for answer in engine.wait("batch", "long", "chat"):
            assert answer.error is None
