"""Answers that follow grammars, through the engine's own loop."""

from __future__ import annotations

import json
import time

import jsonschema
import pytest
import tokenizers
from hagane.engine.loop import Engine
from hagane.generation import grammars
from hagane.pool.messages import GenerateRequest, GrammarRef, SamplingParams

from tests.support.engine import RunningEngine, config
from tests.support.turns import Recorder

SCHEMA = {
    "type": "object",
    "properties": {
        "temperature_in_degrees": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind_of_weather_today": {"enum": ["sunny", "rain", "雪"]},
        "warnings": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["temperature_in_degrees", "kind_of_weather_today", "warnings"],
    "additionalProperties": False,
}
END = 0


def request(name, grammar, *, prompt=tuple(range(20, 40)), n=1, **params):
    sampling = SamplingParams(
        **{"max_tokens": 100, "temperature": 1.0, "seed": 3, "eos_token_ids": (END,)} | params
    )
    wanted = None
    if grammar is not None:
        wanted = GrammarRef(grammar.digest, grammar.text)
    return GenerateRequest(request_id=name, prompt=prompt, sampling=sampling, n=n, grammar=wanted)


@pytest.fixture(scope="module")
def text_of(tiny_model_dir):
    backend = tokenizers.Tokenizer.from_file(str(tiny_model_dir / "tokenizer.json"))
    return lambda answer: backend.decode([t for t in answer.tokens if t != END])


@pytest.fixture(scope="module")
def schema():
    return grammars.from_json_schema(SCHEMA, "p")


def ask(engine, *requests):
    for each in requests:
        engine.send(each)
    return engine.wait(*(each.request_id for each in requests))


def test_the_vocabulary_is_read_in_idle_time_not_at_the_start(tiny_model_dir):
    """It would keep a first request waiting that comes at once."""
    engine = Engine(config(tiny_model_dir), Recorder())
    engine.use_idle_time(time.monotonic())
    assert not engine.vocabulary.begun
    engine.use_idle_time(time.monotonic() + 60)
    assert engine.vocabulary.begun


@pytest.mark.parametrize("overlap", [False, True])
def test_answers_validate_and_are_the_same_in_any_batch(tiny_model_dir, schema, text_of, overlap):
    def batch(names):
        return [
            request(f"{i}", schema if i % 2 == 0 else None, seed=i, temperature=i % 3 / 2)
            for i in names
        ]

    size = {"kv_cache_memory": 81920, "context_length": 160, "max_batch_tokens": 16}
    with RunningEngine(config(tiny_model_dir, **size), overlap=overlap) as engine:
        together = ask(engine, *batch(range(10)))
    with RunningEngine(config(tiny_model_dir, context_length=160), overlap=overlap) as engine:
        alone = [ask(engine, each)[0] for each in batch(range(10))]
    for i, (one, other) in enumerate(zip(together, alone, strict=True)):
        assert one.error is None and other.error is None
        assert one.tokens == other.tokens
        if i % 2 == 0:
            jsonschema.validate(json.loads(text_of(one)), SCHEMA)


def test_forced_tokens_take_no_steps_of_their_own(tiny_model_dir, schema, text_of):
    with RunningEngine(config(tiny_model_dir)) as engine:
        (answer,) = ask(engine, request("a", schema, temperature=0.0))
        steps = engine.stats.steps
    assert len(answer.tokens) > 40
    assert steps < len(answer.tokens) / 2
    jsonschema.validate(json.loads(text_of(answer)), SCHEMA)


def test_an_answer_ends_with_its_grammar(tiny_model_dir, text_of):
    grammar = grammars.from_choices(["yes", "no"], "p")
    with RunningEngine(config(tiny_model_dir)) as engine:
        answers = ask(
            engine,
            request("a", grammar, ignore_eos=True),
            request("b", grammar, min_tokens=60),
            request("c", grammar, logprobs=2),
        )
    assert {text_of(answer) for answer in answers} <= {"yes", "no"}
    assert len(answers[2].logprobs) == len(answers[2].tokens)


@pytest.mark.parametrize("overlap", [False, True])
def test_text_that_may_end_ends_on_each_of_the_models_ends(tiny_model_dir, overlap):
    """Also on those that the tokenizer's file does not name: the turn's end of chat models."""
    open_ended = grammars.from_regex(r"(.|\n)*", "p")
    last = 2
    with RunningEngine(config(tiny_model_dir), overlap=overlap) as engine:
        ended, stopped, ignored, closed = ask(
            engine,
            request("a", open_ended, eos_token_ids=(END, last), logit_bias={last: 100.0}),
            request("b", open_ended, stop_token_ids=(last,), logit_bias={last: 100.0}),
            request("c", open_ended, eos_token_ids=(last,), ignore_eos=True, max_tokens=5,
                    logit_bias={last: 100.0, END: -100.0}),
            request("d", grammars.from_choices(["yes"], "p"), eos_token_ids=(last,),
                    logit_bias={last: 100.0}),
        )  # fmt: skip
    assert [ended.tokens, stopped.tokens] == [[last], [last]]
    assert len(ignored.tokens) == 5
    assert last not in ignored.tokens
    assert last not in closed.tokens, "a text that may not end yet goes on"


def test_every_continuation_goes_its_own_way(tiny_model_dir, text_of):
    choices = [f"{a}{b}" for a in "abcdef" for b in "xyz"]
    grammar = grammars.from_choices(choices, "p")
    with RunningEngine(config(tiny_model_dir)) as engine:
        engine.send(request("a", grammar, n=8, temperature=2.0))
        engine.wait_for(lambda: engine.stats.running == 0 and engine.answers["a"].tokens)
        assert engine.answers["a"].error is None


def test_a_grammar_that_cannot_be_compiled_fails_its_request_alone(tiny_model_dir, schema):
    bad = grammars.Grammar("start: missing", "p")
    with RunningEngine(config(tiny_model_dir)) as engine:
        failed, fine = ask(engine, request("bad", bad), request("good", schema))
    assert failed.error is not None
    assert fine.error is None


def test_max_tokens_may_cut_forced_tokens_short(tiny_model_dir, schema):
    with RunningEngine(config(tiny_model_dir)) as engine:
        (answer,) = ask(engine, request("a", schema, max_tokens=5))
    assert len(answer.tokens) == 5
