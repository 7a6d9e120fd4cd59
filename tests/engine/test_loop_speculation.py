"""Guessed tokens change the time that answers take, and not one bit of them."""

from __future__ import annotations

import json
import random

import pytest
from hagane.engine.speculative.costs import StepCosts
from hagane.generation import grammars
from hagane.kernels import cpu
from hagane.pool.messages import GenerateRequest, GrammarRef, SamplingParams
from hagane.system.errors import ConfigurationError, ModelError

from tests.support.engine import RunningEngine, config, make_adapter, make_draft

pytestmark = pytest.mark.skipif(not cpu.available(), reason="kernels not built")
REQUESTS = 32
MANY_REQUESTS = 1500
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
    repeats = dict.fromkeys(rng.sample(range(3, 300), 3), rng.choice([4.0, 100.0]))
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


def requests(adapter, grammar, count: int, seed: int = 5) -> list[GenerateRequest]:
    """Prompts that repeat themselves, and so do the answers of a small model."""
    rng = random.Random(seed)
    made = []
    for name in range(count):
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
                speculation=rng.choice(["auto"] * 5 + ["off", "lookup", "draft"]),
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


class Unpaid(StepCosts):
    """A draft that costs nothing is measured from the beginning."""

    @property
    def measured(self) -> bool:
        return True

    def __call__(self, rows: int) -> float:
        return 0.0


FORMATS = {
    "float32": {"kv_cache_memory": 1 << 17},
    "int8": {
        "kv_cache_memory": 40_000,
        "dtype": "bfloat16",
        "quantize": "int8",
        "kv_cache_dtype": "int8",
    },
}


def compare(model, changes, asked, **drafting):
    """All answers without guesses and with as many as there can be; returns the latter's stats."""
    # Few blocks: sequences are preempted, and guesses find no room.
    small = {"max_sequences": 16, "max_waiting": 64} | changes
    plain, _ = answers(config(model, speculation="off", **small), asked)
    costs = {"costs": Free(), "draft_costs": Unpaid()}
    guessed, stats = answers(config(model, **small, **drafting), asked, **costs)
    for request in asked:
        one, other = plain[request.request_id], guessed[request.request_id]
        assert one.error is None, one.error
        assert one.finished and other.finished, request
        assert one.tokens == other.tokens or request.n > 1, request
        assert sorted(one.tokens) == sorted(other.tokens), request
        assert sorted(one.logprobs) == sorted(other.logprobs), request
    return stats


@pytest.fixture(scope="module")
def adapter(tiny_model_dir, tmp_path_factory):
    return make_adapter(tmp_path_factory.mktemp("adapters") / "adapter", tiny_model_dir, 1)


@pytest.fixture(scope="module")
def draft_dir(tiny_model_dir, tmp_path_factory):
    return make_draft(tmp_path_factory.mktemp("drafts") / "draft", tiny_model_dir)


@pytest.fixture(scope="module")
def grammar():
    compiled = grammars.from_json_schema(SCHEMA, "p")
    return GrammarRef(compiled.digest, compiled.text)


@pytest.mark.parametrize("changes", FORMATS.values(), ids=FORMATS)
def test_answers_have_the_same_bits(tiny_model_dir, adapter, grammar, changes):
    stats = compare(tiny_model_dir, changes, requests(adapter, grammar, REQUESTS))
    assert stats.preemptions and 0 < stats.lookup.accepted <= stats.lookup.proposed
    assert stats.draft.proposed == 0


def test_a_draft_of_a_shorter_context_guesses_up_to_its_end(tiny_model_dir, tmp_path):
    draft = make_draft(tmp_path / "draft", tiny_model_dir, noise=0.0)
    stored = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps(stored | {"max_position_embeddings": 40}))
    sampling = SamplingParams(max_tokens=80, temperature=0.0, ignore_eos=True)
    asked = [GenerateRequest(request_id="a", prompt=(5, 9, 23, 41), sampling=sampling)]
    stats = compare(tiny_model_dir, {}, asked, draft_model=str(draft), speculation="draft")
    assert stats.draft.accepted > 20


def test_a_draft_leaves_the_bits_as_they_are(tiny_model_dir, draft_dir, adapter, grammar):
    asked = requests(adapter, grammar, REQUESTS // 2, seed=6)
    stats = compare(tiny_model_dir, FORMATS["int8"], asked, draft_model=str(draft_dir))
    assert stats.preemptions and 0 < stats.draft.accepted < stats.draft.proposed


@pytest.mark.slow
@pytest.mark.parametrize("changes", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("speculation", ["auto", "draft", "lookup"])
def test_thousands_of_answers_have_the_same_bits(
    tiny_model_dir, draft_dir, adapter, grammar, changes, speculation
):
    asked = requests(adapter, grammar, MANY_REQUESTS, seed=7)
    drafting = {"draft_model": str(draft_dir), "speculation": speculation}
    stats = compare(tiny_model_dir, changes, asked, **drafting)
    assert stats.preemptions and stats.draft.accepted and stats.lookup.accepted


SAMPLINGS = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 1.0, "seed": 3},
    "unseeded": {"temperature": 1.2, "top_p": 0.9},
    "penalties": {"temperature": 0.7, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_a_draft_that_thinks_alike_guesses_what_is_sampled(tiny_model_dir, grammar, sampling):
    params = SamplingParams(max_tokens=40, ignore_eos=True, logprobs=1, **sampling)
    asked = [
        GenerateRequest(request_id=str(i), prompt=(5, 6, i + 9), sampling=params, grammar=follows)
        for i, follows in enumerate([None, grammar])
    ]
    same = config(tiny_model_dir, draft_model=str(tiny_model_dir), speculation="draft")
    _, stats = answers(same, asked, costs=Free(), draft_costs=Unpaid())
    assert stats.draft.accepted > 20
    assert stats.draft.accepted >= 0.95 * stats.draft.proposed
    assert stats.steps < 40


def test_a_request_that_does_not_speculate_is_left_alone(tiny_model_dir):
    greedy = SamplingParams(max_tokens=60, temperature=0.0)
    request = GenerateRequest(
        request_id="a", prompt=(5, 6, 7) * 9, sampling=greedy, speculation="off"
    )
    _, stats = answers(config(tiny_model_dir), [request], costs=Free())
    assert stats.lookup.proposed == 0


def test_repetition_takes_fewer_steps(tiny_model_dir):
    greedy = SamplingParams(max_tokens=90, temperature=0.0, logit_bias={7: 100.0})
    request = GenerateRequest(request_id="a", prompt=(5, 6, 7) * 9, sampling=greedy)
    _, stats = answers(config(tiny_model_dir), [request], costs=Free())
    assert stats.steps < 20


def test_what_cannot_be_is_refused_by_name(tiny_model_dir, tmp_path):
    with pytest.raises(ConfigurationError, match="speculation lookup needs"):
        RunningEngine(config(tiny_model_dir, speculation="lookup"), overlap=True)
    with pytest.raises(ConfigurationError, match="set draft_model"):
        RunningEngine(config(tiny_model_dir, speculation="draft"))
    drafting = config(tiny_model_dir, draft_model=str(tiny_model_dir))
    with pytest.raises(ConfigurationError, match="draft_model needs"):
        RunningEngine(drafting, overlap=True)
    with pytest.raises(ModelError, match="nowhere"):
        RunningEngine(config(tiny_model_dir, draft_model=str(tmp_path / "nowhere")))
