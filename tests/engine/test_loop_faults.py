"""Exceptions in the loop: they fail the requests that they belong to, and nothing else."""

from __future__ import annotations

import random
from itertools import combinations, product

import msgspec
import pytest
from hagane.engine.sampling.sampler import Sampler
from hagane.engine.step.runner import ModelRunner
from hagane.pool.channel import MalformedMessage
from hagane.pool.messages import EngineConfig, GenerateRequest, SamplingParams
from hagane.system.errors import InvalidRequestError

from tests.support.engine import config, make_adapter
from tests.support.turns import Loop, play, random_request

PROMPT = tuple(range(40, 60))


class PoisonedSampler(Sampler):
    """Cannot sample rows of the requests in `poison`; what it raises names nobody."""

    def __init__(self, operations, poison: set[str]) -> None:
        super().__init__(operations)
        self.poison = poison

    def sample(self, logits, sequences, grammar):
        if any(sequence.request_id in self.poison for sequence in sequences):
            raise OverflowError("int too large to convert")
        return super().sample(logits, sequences, grammar)


class ExhaustedSampler(Sampler):
    """Can never sample rows of `first`, and those of `second` in two attempts only."""

    def __init__(self, operations) -> None:
        super().__init__(operations)
        self.attempts = 0

    def sample(self, logits, sequences, grammar):
        names = {sequence.request_id for sequence in sequences}
        self.attempts += "second" in names
        if "first" in names or ("second" in names and self.attempts > 2):
            raise OverflowError("took too long")
        return super().sample(logits, sequences, grammar)


class FailingRunner:
    """A runner whose passes fail now and then, before or after the model has run."""

    def __init__(self, settings: EngineConfig, rate: float, seed: int) -> None:
        self._runner = ModelRunner(settings)
        self._rate, self._random = rate, random.Random(seed)
        self.failures = 0

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def execute(self, batch, copies, leaves):
        chance = self._random.random()
        if chance < self._rate / 2:
            self.failures += 1
            raise MemoryError("before")
        logits = self._runner.execute(batch, copies, leaves)
        if chance < self._rate:
            self.failures += 1
            raise RuntimeError("after")
        return logits


def ask(name: str, **params) -> GenerateRequest:
    sampling = SamplingParams(**({"max_tokens": 12, "temperature": 0.0} | params))
    return GenerateRequest(request_id=name, prompt=PROMPT, sampling=sampling)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_only_the_poisoned_fail_and_the_others_keep_their_bits(
    tiny_model_dir, tmp_path, seed, ahead
):
    adapters = [make_adapter(tmp_path / "adapter", tiny_model_dir, 0)]
    size = {"kv_cache_memory": 1 << 16, "max_waiting": 64, "context_length": 96}
    runner = ModelRunner(config(tiny_model_dir, **size))
    poison = {f"r{turn}" for turn in range(0, 150, 3)}
    sound, hurt = (
        Loop(tiny_model_dir, ahead=ahead, parts={"runner": runner, "sampler": sampler}, **size)
        for sampler in (Sampler(runner.operations), PoisonedSampler(runner.operations, poison))
    )
    cancelled = play(sound, seed, adapters) | play(hurt, seed, adapters)
    expected, got = sound.said.answers(), hurt.said.answers()
    failed = set(hurt.said.failed)
    assert failed and failed <= poison
    assert not any(name in poison for name, _ in got)
    whole = {key for key in expected if key[0] not in cancelled | poison}
    assert len(whole) > 8
    for key in whole:
        assert got[key] == expected[key]


def test_a_row_may_fail_after_another_was_blamed(tiny_model_dir):
    """Accounts of grammars grow with every attempt to sample a step."""
    runner = ModelRunner(config(tiny_model_dir))
    parts = {"runner": runner, "sampler": ExhaustedSampler(runner.operations)}
    loop = Loop(tiny_model_dir, parts=parts)
    for name in ("first", "second", "third"):
        loop.handle(ask(name))
    loop.drain()
    assert sorted(loop.said.failed) == ["first", "second"]
    assert len(loop.said.answers()["third", 0][0]) == 12


@pytest.mark.parametrize("ahead", [False, True])
def test_a_pass_that_fails_costs_its_own_requests_and_no_block(tiny_model_dir, tmp_path, ahead):
    adapters = [make_adapter(tmp_path / "adapter", tiny_model_dir, 0)]
    size = {"kv_cache_memory": 1 << 16, "max_waiting": 64, "context_length": 96}
    settings = config(tiny_model_dir, **size)
    plain = Loop(tiny_model_dir, ahead=ahead, **size)
    runner = FailingRunner(settings, rate=0.03, seed=1)
    loop = Loop(tiny_model_dir, ahead=ahead, parts={"runner": runner}, **size)
    cancelled = play(plain, 3, adapters) | play(loop, 3, adapters)
    assert runner.failures >= 3
    expected, got, failed = plain.said.answers(), loop.said.answers(), set(loop.said.failed)
    assert failed
    whole = {key for key in expected if key[0] not in cancelled | failed}
    assert whole
    for key in whole:
        assert got[key] == expected[key]


class ForgetfulRunner(FailingRunner):
    """Hands out logits of too few rows once: rows can no longer be matched."""

    def execute(self, batch, copies, leaves):
        logits = self._runner.execute(batch, copies, leaves)
        self.failures += 1
        return logits[:0] if self.failures == 3 else logits


def test_a_fault_that_belongs_to_nobody_fails_all_and_the_next_request_is_answered(tiny_model_dir):
    runner = ForgetfulRunner(config(tiny_model_dir), rate=0.0, seed=0)
    loop = Loop(tiny_model_dir, parts={"runner": runner})
    for name in ("first", "second"):
        loop.handle(ask(name))
    loop.drain()
    assert sorted(loop.said.failed) == ["first", "second"]
    loop.handle(ask("third"))
    loop.drain()
    assert len(loop.said.answers()["third", 0][0]) == 12


def test_what_cannot_be_read_fails_the_request_that_it_names(tiny_model_dir):
    loop = Loop(tiny_model_dir)
    loop.handle(MalformedMessage(request_id="broken", reason="not a message"))
    loop.handle(MalformedMessage(reason="not a message"))
    loop.handle(ask("sound"))
    loop.drain()
    assert loop.said.failed == ["broken"]
    assert len(loop.said.answers()["sound", 0][0]) == 12


@pytest.mark.parametrize("token", [-1, 300, 1 << 20, (1 << 31) - 1])
@pytest.mark.parametrize("field", ["prompt", "logit_bias", "stop_token_ids", "eos_token_ids"])
def test_ids_outside_the_vocabulary_do_no_harm(tiny_model_dir, field, token):
    loop = Loop(tiny_model_dir)
    vocabulary = loop.engine.runner.vocab_size
    token = vocabulary if token == 300 else token
    request = ask("odd", min_tokens=3)
    if field == "prompt":
        request = msgspec.structs.replace(request, prompt=(*PROMPT, token))
    elif field == "logit_bias":
        request = ask("odd", logit_bias={token: 1.0})
    else:
        request = ask("odd", min_tokens=3, **{field: (token,)})
    loop.handle(request)
    loop.handle(ask("sound"))
    loop.drain()
    assert loop.said.failed == (["odd"] if field in ("prompt", "logit_bias") else [])
    assert len(loop.said.answers()["sound", 0][0]) == 12


EXTREMES = (
    1 << 31, (1 << 31) - 1, 1 << 53, (1 << 63) - 1, 1 << 63, 1 << 64, -1, -(1 << 63), -(1 << 64),
    0, 1, 1e308, -1e308, -0.0, 5e-324, 2.3e-308, 1e-45, float("nan"), float("inf"), -float("inf"),
)  # fmt: skip
WHOLE = ("top_k", "seed", "min_tokens", "logprobs", "prompt_logprobs", "max_tokens")
REAL = (
    "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "logit_bias",
)  # fmt: skip


def extreme_requests() -> list[GenerateRequest]:
    """Every pair of fields at some of their extremes, greedy and sampled; refused ones left out."""
    chance = random.Random(0)
    made = []
    for first, second in combinations((*WHOLE, *REAL), 2):
        for temperature, _ in product((0.0, 1.0), range(16)):
            fields = {"max_tokens": 3, "temperature": temperature, "seed": 1}
            for name in (first, second):
                value = chance.choice([v for v in EXTREMES if name in REAL or isinstance(v, int)])
                fields[name] = {7: value} if name == "logit_bias" else value
            try:
                made.append(ask(f"{len(made)}", **fields))
            except InvalidRequestError as error:
                assert error.param in (first, second, "max_tokens")
    return made


def test_extreme_numbers_are_refused_or_answered(tiny_model_dir):
    loop = Loop(tiny_model_dir, max_waiting=1000, context_length=64, max_sequences=32)
    requests = [msgspec.structs.replace(r, deadline=None) for r in extreme_requests()]
    assert len(requests) > 100
    for request in requests:
        # As it crosses the process boundary.
        encoded = msgspec.msgpack.encode(request)
        loop.handle(msgspec.msgpack.decode(encoded, type=GenerateRequest))
    loop.handle(random_request(random.Random(1), "sound", []))
    loop.drain()
    by_id = {request.request_id: request for request in requests}
    hurt = [by_id[name].sampling for name in loop.said.failed if name in by_id]
    assert hurt == [s for s in hurt if s.max_tokens < 1]
    assert ("sound", 0) in loop.said.answers()


def test_denormal_temperatures_are_greedy(tiny_model_dir):
    loop = Loop(tiny_model_dir)
    for i, temperature in enumerate((0.0, 5e-324, 2.3e-308, 1e-45, 1e-6)):
        loop.handle(ask(f"{i}", temperature=temperature, seed=3))
    loop.drain()
    answers = loop.said.answers()
    assert {tuple(answers[f"{i}", 0][0]) for i in range(5)} == {tuple(answers["0", 0][0])}


def test_a_reader_of_adapters_may_raise_anything(tiny_model_dir, tmp_path):
    adapter = make_adapter(tmp_path / "adapter", tiny_model_dir, 0)

    def read(*_):
        raise RecursionError("deep")

    loop = Loop(tiny_model_dir, parts={"read_adapter": read})
    loop.handle(msgspec.structs.replace(ask("adapted"), adapter=adapter))
    loop.handle(ask("sound"))
    loop.drain()
    assert loop.said.failed == ["adapted"]
    assert len(loop.said.answers()["sound", 0][0]) == 12
