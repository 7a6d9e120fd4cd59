"""An engine without a process, whose turns are taken one by one, and random traffic for it."""

from __future__ import annotations

import random
from collections import defaultdict

import msgspec
from hagane.engine.loop import Engine
from hagane.pool.messages import (
    CancelRequest,
    EngineReady,
    GenerateRequest,
    Heartbeat,
    Loading,
    LogLines,
    SamplingParams,
    StepOutput,
    TokenDelta,
)

from tests.support.engine import config

VOCABULARY = 300


class Recorder:
    """Takes the place of the channel: keeps what the engine says."""

    def __init__(self) -> None:
        self.deltas: dict[tuple[str, int], list[TokenDelta]] = defaultdict(list)
        self.failed: list[str] = []

    def send(self, message: msgspec.Struct) -> None:
        if isinstance(message, EngineReady | Heartbeat | Loading | LogLines):
            return
        assert isinstance(message, StepOutput)
        for delta in message.deltas:
            self.deltas[delta.request_id, delta.index].append(delta)
        self.failed += [failure.request_id for failure in message.failures]

    def wake(self) -> None:
        pass

    def receive(self, timeout: float | None) -> list[msgspec.Struct]:
        return []

    def answers(self) -> dict[tuple[str, int], tuple]:
        """Tokens, log-probabilities and the end of every continuation."""
        return {key: _joined(deltas) for key, deltas in self.deltas.items()}


def _joined(deltas: list[TokenDelta]) -> tuple:
    tokens = [token for delta in deltas for token in delta.tokens]
    logprobs = [entry for delta in deltas for entry in delta.logprobs or ()]
    prompts = [delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs]
    assert all(delta.finish_reason is None for delta in deltas[:-1])
    return tokens, logprobs, prompts, deltas[-1].finish_reason, deltas[-1].stopped_on_token


class Loop:
    """An engine whose turns are taken one by one."""

    def __init__(self, model, *, ahead: bool = False, parts=None, **changes) -> None:
        self.said = Recorder()
        self.engine = Engine(config(model, **changes), self.said, overlap=ahead, **(parts or {}))
        self.overlapping = 0

    def turn(self) -> None:
        before = self.engine.pipeline.in_flight
        self.engine.turn()
        self.overlapping += before and self.engine.pipeline.in_flight
        self.engine.scheduler.check()

    def handle(self, message: msgspec.Struct) -> None:
        self.engine.handle(message)

    def drain(self) -> None:
        for _ in range(5_000):
            if not self.engine.busy:
                break
            self.turn()
        assert not self.engine.scheduler.has_work
        assert self.engine.scheduler.kv.used == 0


def random_request(chance: random.Random, name: str, adapters: list) -> GenerateRequest:
    stem = tuple(range(40, 40 + chance.choice([0, 9, 33])))
    tail = tuple(chance.randrange(3, VOCABULARY) for _ in range(chance.choice([1, 5, 20])))
    sampling = SamplingParams(
        max_tokens=chance.choice([1, 10, 40, 60]),
        min_tokens=chance.choice([0, 0, 3]),
        temperature=chance.choice([0.0, 0.0, 1.0]),
        top_p=chance.choice([1.0, 0.9]),
        seed=chance.randrange(1000),
        # A tenth of the vocabulary: texts do end before their limit.
        stop_token_ids=tuple(chance.sample(range(VOCABULARY), 30)) if chance.random() < 0.5 else (),
        ignore_eos=True,
        presence_penalty=1.5 if chance.random() < 0.1 else 0.0,
        repetition_penalty=1.3 if chance.random() < 0.1 else 1.0,
        logit_bias={7: 3.0} if chance.random() < 0.2 else {},
        logprobs=chance.choice([None, None, 0, 3]),
        prompt_logprobs=chance.choice([None, None, None, 1]),
    )
    return GenerateRequest(
        request_id=name,
        prompt=stem + tail,
        sampling=sampling,
        n=chance.choice([1, 1, 1, 2, 3]),
        adapter=chance.choice([None, None, *adapters]),
    )


def play(loop: Loop, seed: int, adapters: list) -> set[str]:
    """Random arrivals, cancellations and turns; of which requests something was cancelled."""
    chance = random.Random(seed)
    requests, cancelled = [], set()
    for turn in range(150):
        if chance.random() < 0.4 and len(requests) < 40:
            requests.append(random_request(chance, f"r{turn}", adapters))
            loop.handle(requests[-1])
        if requests and chance.random() < 0.05:
            victim = chance.choice(requests)
            index = chance.choice([None, 0])
            loop.handle(CancelRequest(victim.request_id, index))
            cancelled.add(victim.request_id)
        loop.turn()
    loop.drain()
    return cancelled
