"""Random walks through grammars end in texts that an independent validator accepts."""

from __future__ import annotations

import json
import random
import re
import time

import jsonschema
import numpy as np
import pytest
import tokenizers
import torch
from hagane.engine.sampling.constraints import Constraints, Cost, Grammars
from hagane.engine.sampling.grammar_vocabulary import Vocabulary
from hagane.engine.schedule.sequence import Sequence
from hagane.generation import grammars
from hagane.pool.messages import GenerateRequest, GrammarRef, SamplingParams
from hagane.system.errors import InvalidRequestError

SCHEMA = {
    "type": "object",
    "properties": {
        "a_rather_long_property_name": {"type": "integer", "minimum": 3, "maximum": 4000},
        "kind": {"enum": ["猫", "dog", None]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        "name": {"type": "string", "maxLength": 5},
    },
    "required": ["a_rather_long_property_name", "kind", "tags"],
    "additionalProperties": False,
}
VOCABULARY = 333  # the head has more rows than the tokenizer has tokens


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return tokenizers.Tokenizer.from_file(str(tiny_model_dir / "tokenizer.json"))


@pytest.fixture(scope="module")
def compiled(tiny_model_dir):
    return Grammars(Vocabulary((tiny_model_dir / "tokenizer.json").read_text), VOCABULARY)


def ref(grammar) -> GrammarRef:
    return GrammarRef(grammar.digest, grammar.text)


def tokens_of(allowed: torch.Tensor) -> list[int]:
    """The tokens whose bits are set."""
    assert (allowed.shape, allowed.dtype) == ((-(-VOCABULARY // 8),), torch.uint8)
    return np.flatnonzero(np.unpackbits(allowed.numpy(), bitorder="little")).tolist()


def walk(compiled, grammar, seed, forced=True):
    """Tokens drawn at random among the allowed ones, and how many of them were forced."""
    rng = random.Random(seed)
    constraint = compiled.compile(ref(grammar))
    tokens, given = [], 0
    while len(tokens) < 2000:
        more = list(constraint.forced()) if forced else []
        if more:
            given += len(more)
        else:
            more = [rng.choice(tokens_of(constraint.allowed()))]
        if more[0] == 0:
            return tokens, given
        constraint.advance(*more)
        tokens += more
    raise AssertionError("the walk did not end")


@pytest.mark.parametrize("forced", [True, False])
def test_walks_through_a_schema_validate(compiled, tokenizer, forced):
    grammar = grammars.from_json_schema(SCHEMA, "p")
    for seed in range(30):
        tokens, given = walk(compiled, grammar, seed, forced)
        jsonschema.validate(json.loads(tokenizer.decode(tokens)), SCHEMA)
        assert bool(given) is forced


def test_walks_through_a_regex_match(compiled, tokenizer):
    grammar = grammars.from_regex(r"[a-c]{2,4}-[0-9]+(x|yz)", "p")
    for seed in range(30):
        tokens, _ = walk(compiled, grammar, seed)
        assert re.fullmatch(r"[a-c]{2,4}-[0-9]+(x|yz)", tokenizer.decode(tokens))


def test_choices(compiled, tokenizer):
    choices = ["yes", "no", "いいえ", 'say "no"']
    grammar = grammars.from_choices(choices, "p")
    found = {tokenizer.decode(walk(compiled, grammar, seed)[0]) for seed in range(60)}
    assert found == set(choices)


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize(
    "grammar",
    [
        grammars.from_json_schema(SCHEMA, "p"),
        grammars.from_regex(r"[a-z ,.]{2,30}(x|yz)", "p"),
        grammars.from_choices(["yes", "no", "いいえ", "yesterday"], "p"),
        grammars.from_text('root ::= (word " "){3}\nword ::= [a-zA-Z]+', "p"),
        grammars.any_text([], "p"),
    ],
)
def test_a_token_is_admitted_if_the_mask_has_it(compiled, grammar, forced):
    """Both answers are used: the mask only where the token that was sampled is refused."""
    wanted = ref(grammar)
    compiled.keep(grammar.digest, compiled.compile(wanted))
    constraints, rng = Constraints(compiled), random.Random(2)
    for ends in ((0,), (2, 0), ()):
        sampling = SamplingParams(max_tokens=99, eos_token_ids=ends, stop_token_ids=(7,))
        request = GenerateRequest(request_id="r", prompt=(5,), sampling=sampling, grammar=wanted)
        sequence = Sequence.of(request, 0, 0.0)
        for _ in range(40):
            allowed = tokens_of(constraints.allowed(sequence))
            assert allowed == [t for t in range(VOCABULARY) if constraints.admits(sequence, t)]
            token = rng.choice(allowed)
            found = constraints.follow(sequence, [token], forced=forced)
            if found.ended or token in (*ends, 7, 0):
                break


def test_a_copy_goes_its_own_way(compiled):
    grammar = grammars.from_choices(["ab", "cd"], "p")
    first = compiled.compile(ref(grammar))
    second = first.copy()
    first.advance(tokens_of(first.allowed())[0])
    assert not torch.equal(first.allowed(), second.allowed())


def test_a_token_that_is_not_allowed_is_an_error(compiled):
    grammar = grammars.from_choices(["ab"], "p")
    constraint = compiled.compile(ref(grammar))
    with pytest.raises(InvalidRequestError):
        constraint.advance(tokens_of(~constraint.allowed())[5])


def test_the_end_is_one_of_the_model_s_end_tokens(compiled, tokenizer):
    grammar = grammars.from_choices(["ab"], "p")
    constraint = compiled.compile(ref(grammar))
    constraint.advance(*tokenizer.encode("ab", add_special_tokens=False).ids)
    assert set(tokens_of(constraint.allowed())) <= {0}
    assert constraint.finished


AMBIGUOUS = 'start: e\ne: e e | e e e | /[a-z ]/ | ""'


def test_a_grammar_has_so_much_time_however_often_it_is_asked_for(compiled, tokenizer):
    """Its masks are within the bounds of each; their sum is what others wait for."""
    grammar = ref(grammars.from_text(AMBIGUOUS, "p"))
    compiled.keep(grammar.digest, compiled.compile(grammar))
    tokens = tokenizer.encode("there once was a cat who lived " * 6, add_special_tokens=False).ids
    started, answers, reasons = time.thread_time(), 0, set()
    while time.thread_time() - started < 30:
        answers += 1
        try:
            place = compiled.start(grammar)
            for token in tokens:
                with place.cost:
                    place.allowed()
                    place.advance(token)
        except InvalidRequestError as error:
            reasons.add(str(error).split(":")[0])
        if "The grammar takes too much time" in reasons:
            break
    assert "The grammar takes too much time" in reasons, (answers, reasons)


def test_a_schema_has_all_the_time_that_it_needs(compiled, tokenizer):
    grammar = ref(grammars.any_json_object("p"))
    compiled.keep(grammar.digest, compiled.compile(grammar))
    text = json.dumps({f"key {i}": [i, "text", None] for i in range(100)})
    for _ in range(20):
        place = compiled.start(grammar)
        for token in tokenizer.encode(text, add_special_tokens=False).ids:
            with place.cost:
                place.allowed()
                place.advance(token)


def test_time_in_which_others_have_the_core_is_not_the_grammars():
    cost = Cost()
    with cost:
        time.sleep(0.4)
    assert not cost.excessive
    with cost:
        end = time.thread_time() + 0.3
        while time.thread_time() < end:
            pass
    assert cost.excessive
