"""Guessed tokens change the time that answers take, and not one bit of them."""

from __future__ import annotations

import random

import pytest
from hagane.engine.speculative.costs import StepCosts
from hagane.generation import grammars
from hagane.kernels import cpu
from hagane.pool.messages import GenerateRequest, GrammarRef, SamplingParams
from hagane.system.errors import ConfigurationError

from tests.support.engine import RunningEngine, config, make_adapter

pytestmark = pytest.mark.skipif(not cpu.available(), reason="kernels not built")
REQUESTS = 144
SCHEMA = {
    "type": "object",
    "properties": {"names": {"type": "array", "items": {"enum": ["a", "bb"]}, "maxItems": 6}},
    "required": ["names"],
    "additionalProperties": False,
}


class Free(StepCosts):
    """Every row costs nothing: as many tokens are guessed as can be."""

    def __call__(self, rows: int) -> float:
        return 1.0


def sampling(rng: random.Random) -> SamplingParams:
    """Of every kind that asks for the tokens before, or for how many there are."""
    repeats = dict.fromkeys(rng.sample(range(3, 300), 3), rng.choice([4.0, 30.0]))
    return SamplingParams(
        max_tokens=rng.choice([1, 2, 20, 60, 90]),
        min_tokens=rng.choice([0, 0, 5]),
        temperature=rng.choice([0.0, 0.0, 0.3, 1.0]),
        top_p=rng.choice([1.0, 0.9]),
        top_k=rng.choice([0, 3]),
        repetition_penalty=rng.choice([1.0, 1.0, 0.7]),
        presence_penalty=rng.choice([0.0, 0.0, -0.5]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.2]),
        logit_bias=rng.choice([{}, repeats]),
        seed=rng.randint(0, 9),
        eos_token_ids=(0,),
        stop_token_ids=rng.choice([(), (rng.randint(3, 300),)]),
        ignore_eos=rng.random() < 0.5,
        logprobs=rng.choice([None, 2]),
        prompt_logprobs=rng.choice([None, None, None, 1]),
    )


def requests(adapter, grammar) -> list[GenerateRequest]:
    """Prompts that repeat themselves, and so do the answers of a small model."""
    rng = random.Random(5)
    made = []
    for name in range(REQUESTS):
        phrase = [rng.randint(3, 300) for _ in range(rng.randint(2, 9))]
        prompt = (phrase * 12)[: rng.randint(1, 60)]
        made.append(
            GenerateRequest(
                request_id=str(name),
                prompt=tuple(prompt),
                sampling=sampling(rng),
                n=rng.choice([1, 1, 2]),
                adapter=rng.choice([None, None, adapter]),
                grammar=rng.choice([None, None, None, grammar]),
                speculates=rng.random() < 0.9,
            )
        )
    return made


def answers(settings, asked, **parts):
    with RunningEngine(settings, **parts) as engine:
        for start in range(0, len(asked), 16):
            batch = asked[start : start + 16]
            for request in batch:
                engine.send(request)
            engine.wait(*(request.request_id for request in batch))
        return dict(engine.answers), engine.stats


@pytest.mark.parametrize(
    ("memory", "changes"),
    [
        (1 << 17, {}),
        (24_000, {"dtype": "bfloat16", "quantize": "int8", "kv_cache_dtype": "int8"}),
    ],
    ids=["float32", "int8"],
)
def test_answers_have_the_same_bits(tiny_model_dir, tmp_path, memory, changes):
    adapter = make_adapter(tmp_path / "adapter", tiny_model_dir, 1)
    compiled = grammars.from_json_schema(SCHEMA, "p")
    asked = requests(adapter, GrammarRef(compiled.digest, compiled.text))
    # Few blocks: sequences are preempted, and guesses find no room.
    small = {"kv_cache_memory": memory, "max_sequences": 16} | changes
    plain, _ = answers(config(tiny_model_dir, speculation="off", **small), asked)
    guessed, stats = answers(config(tiny_model_dir, **small), asked, costs=Free())
    assert stats.preemptions and stats.accepted_tokens > 100
    assert stats.proposed_tokens > stats.accepted_tokens
    for request in asked:
        one, other = plain[request.request_id], guessed[request.request_id]
        assert one.error is None, one.error
        assert one.finished and other.finished
        assert one.tokens == other.tokens or request.n > 1, request
        assert sorted(one.logprobs) == sorted(other.logprobs), request


def test_a_request_that_does_not_speculate_is_left_alone(tiny_model_dir):
    greedy = SamplingParams(max_tokens=60, temperature=0.0)
    request = GenerateRequest(
        request_id="a", prompt=(5, 6, 7) * 9, sampling=greedy, speculates=False
    )
    _, stats = answers(config(tiny_model_dir), [request], costs=Free())
    assert stats.proposed_tokens == 0


def test_repetition_takes_fewer_steps(tiny_model_dir):
    greedy = SamplingParams(max_tokens=90, temperature=0.0, logit_bias={7: 100.0})
    request = GenerateRequest(request_id="a", prompt=(5, 6, 7) * 9, sampling=greedy)
    _, stats = answers(config(tiny_model_dir), [request], costs=Free())
    assert stats.steps < 20


def test_speculation_needs_kernels_that_verify(tiny_model_dir):
    with pytest.raises(ConfigurationError, match="speculation"):
        RunningEngine(config(tiny_model_dir, speculation="lookup"), overlap=True)
