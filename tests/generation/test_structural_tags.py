"""Structural tags, old and new, and what they allow."""

from __future__ import annotations

import json

import llguidance
import pytest
from hagane.generation.structural_tags import from_structural_tag
from hagane.system.errors import InvalidRequestError

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
OLD = {
    "type": "structural_tag",
    "structures": [
        {"begin": "<fn=f>", "schema": SCHEMA, "end": "</fn>"},
        {"begin": "<fn=g>", "schema": {"type": "string"}, "end": "</fn>"},
    ],
    "triggers": ["<fn="],
}
NUMBER = {"type": "regex", "pattern": "[0-9]+/[0-9]"}
TAG = {"type": "tag", "begin": "<a>", "content": {"type": "any_text"}, "end": "</a>"}


def allowed(value, *texts):
    """Which of these texts the grammar of a tag accepts whole."""
    grammar = from_structural_tag(value, "p", lambda _: None)
    tokens = llguidance.LLTokenizer("byte")

    def accepts(text):
        matcher = llguidance.LLMatcher(tokens, grammar.text, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        read = matcher.try_consume_tokens(list(text.encode()))
        return read == len(text.encode()) and matcher.is_accepting()

    return [text for text in texts if accepts(text)]


@pytest.mark.parametrize("value", [OLD, json.dumps(OLD)])
def test_text_goes_on_in_a_form_after_a_trigger(value):
    right = ["Hm, <b>.", '<fn=f>{"a": 1}</fn>', 'So: <fn=g>"京"</fn>\nand <fn=f>{"a": 2}</fn>!']
    wrong = ["<fn=h>", "<fn=f>1</fn>", '<fn=f>{"a": 1}</f>', "<fn="]
    assert allowed(value, *right, *wrong) == right


@pytest.mark.parametrize(
    ("options", "right"),
    [
        ({}, ["", "x", "<a>y</a>", "x<a>y</a>z", "<a></a><a></a>"]),
        ({"at_least_one": True}, ["<a>y</a>", "x<a>y</a>z", "<a></a><a></a>"]),
        ({"stop_after_first": True}, ["", "x", "<a>y</a>"]),
        ({"stop_after_first": True, "at_least_one": True}, ["<a>y</a>"]),
    ],
)
def test_how_many_tags_there_may_be(options, right):
    form = {"type": "triggered_tags", "triggers": ["<a"], "tags": [TAG], **options}
    texts = ["", "x", "<a>y</a>", "x<a>y</a>z", "<a></a><a></a>", "<ab"]
    assert allowed({"format": form}, *texts) == right


@pytest.mark.parametrize(
    ("form", "right", "wrong"),
    [
        ({"type": "const_string", "value": 'a"b'}, ['a"b'], ["a"]),
        (NUMBER, ["12/3"], ["12"]),
        ({"type": "json_schema", "json_schema": SCHEMA}, ['{"a": 1}'], ["{}"]),
        ({"type": "grammar", "grammar": 'root ::= "x" | "y"'}, ["x", "y"], ["xy"]),
        ({"type": "or", "elements": [NUMBER, TAG]}, ["1/2", "<a>1</a>"], ["1/2<a></a>"]),
        (
            {"type": "sequence", "elements": [TAG, NUMBER, {"type": "any_text"}]},
            ["<a></a>1/2", "<a>x</a>1/2 and more"],
            ["<a></a>"],
        ),
        (
            {"type": "tags_with_separator", "tags": [TAG], "separator": ","},
            ["", "<a>1</a>", "<a>1</a>,<a>2</a>"],
            ["<a>1</a><a>2</a>", "<a>1</a>,"],
        ),
        ({**TAG, "end": ["</a>", "</b>"]}, ["<a>x</a>", "<a>x</b>"], ["<a>x</c>"]),
    ],
)
def test_forms(form, right, wrong):
    assert allowed({"format": form}, *right, *wrong) == right


def test_markers_that_are_tokens_of_the_model():
    grammar = from_structural_tag(OLD | {"triggers": ["<fn=f>", "<fn=g>"]}, "p", {"<fn=f>": 7}.get)
    (rules, *_) = json.loads(grammar.text)["grammars"]
    assert "<[7]>" in rules["lark_grammar"] and '"<fn=f>"' not in rules["lark_grammar"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object"),
        ({}, "needs 'format'"),
        ({"format": {"type": "qwen"}}, "format: 'type' must be one of"),
        (OLD | {"triggers": ["<x"]}, r"structures.tags\[0\]: 'begin'"),
        ({"structures": [1], "triggers": ["a"]}, r"tags\[0\]"),
        ({"format": {"type": "sequence", "elements": [{"type": "any_text"}, NUMBER]}}, "come last"),
        ({"format": {**TAG, "content": None}}, "format.content"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(value, words):
    with pytest.raises(InvalidRequestError, match=words) as refused:
        from_structural_tag(value, "p", lambda _: None)
    assert refused.value.param == "p"


def test_depth_is_bounded():
    form = NUMBER
    for _ in range(200):
        form = {"type": "sequence", "elements": [form]}
    with pytest.raises(InvalidRequestError, match="deeply"):
        from_structural_tag({"format": form}, "p", lambda _: None)


def test_what_is_nested_does_not_multiply():
    form = NUMBER
    for depth in range(15):
        end = [f"</{depth}{letter}>" for letter in "abcdefghij"]
        form = {"type": "tag", "begin": f"<{depth}>", "content": form, "end": end}
    grammar = from_structural_tag({"format": form}, "p", lambda _: None)
    assert len(grammar.text) < 20_000


def test_what_is_separated_does_not_multiply_either():
    form = {"type": "tag", "begin": "<a>", "content": NUMBER, "end": "</a>"}
    for _ in range(15):
        form = {"type": "tags_with_separator", "tags": [form], "separator": ","}
    assert len(from_structural_tag({"format": form}, "p", lambda _: None).text) < 20_000
