"""Grammars that could be read in very many ways end before they hold others up."""

from __future__ import annotations

import json
import time

import llguidance
import pytest
from hagane.text.hub import BUILTIN_MODELS
from hagane.text.matcher import error_of, new_matcher

AMBIGUOUS = 'start: e\ne: e e | e e e | /[a-z ]/ | ""'


@pytest.fixture(scope="module")
def tokenizer():
    return llguidance.LLTokenizer((BUILTIN_MODELS / "hagane-mini/tokenizer.json").read_text())


def test_an_ambiguous_grammar_is_given_up_while_its_masks_are_fast(tokenizer):
    matcher = new_matcher(tokenizer, llguidance.LLMatcher.grammar_from_lark(AMBIGUOUS))
    tokens, slowest = tokenizer.tokenize_str("there once was a cat who lived " * 6), 0.0
    for token in tokens:
        started = time.process_time()
        matcher.compute_bitmask()
        slowest = max(slowest, time.process_time() - started)
        if matcher.is_error():
            break
        matcher.consume_tokens([token])
    assert "Too many items" in error_of(matcher)
    assert "<" not in error_of(matcher)
    assert slowest < 0.3  # without bounds of ours 0.6 and more, of one core


def test_large_schemas_are_within_the_bounds(tokenizer):
    kinds = [{"type": "string"}, {"type": "integer"}, {"enum": [f"v{i}" for i in range(50)]}]
    schema = {"type": "object", "properties": {f"p{i}": {"anyOf": kinds} for i in range(300)}}
    text = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
    matcher = new_matcher(tokenizer, text)
    matcher.consume_tokens(tokenizer.tokenize_str('{"p0":"a'))
    matcher.compute_bitmask()
    assert not error_of(matcher)
