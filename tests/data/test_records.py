"""Lines of training files that would teach a model nothing, or the wrong thing."""

from __future__ import annotations

import json

import pytest
from hagane.data.records import RecordError, parse

USER = {"role": "user", "content": "Hello"}
CALL = {"function": {"name": "f", "arguments": "{}"}}


def answer(content, **more):
    return {"role": "assistant", "content": content, **more}


def refusal(record, method="supervised"):
    with pytest.raises(RecordError) as caught:
        parse(json.dumps(record), method)
    return str(caught.value)


@pytest.mark.parametrize("content", ["", " \n", [], [{"type": "text", "text": ""}]])
@pytest.mark.parametrize("key", ["messages", "completion"])
def test_empty_answers_are_not_trained_on(content, key):
    messages = [answer("Good day"), USER, answer(content)]
    record = {"messages": [USER, *messages]}
    if key == "completion":
        record = {"prompt": [USER], "completion": messages}
    index = len(record[key]) - 1
    assert refusal(record).startswith(f"{key}[{index}].content is empty")


def test_an_empty_answer_may_be_context_or_carry_a_call():
    context = [USER, answer("", weight=0), USER, answer("Good day")]
    (conversation,) = parse(json.dumps({"messages": context}), "supervised")
    assert conversation.weights == (False, False, False, True)
    parse(json.dumps({"messages": [USER, answer("", tool_calls=[CALL])]}), "supervised")
    parse(json.dumps({"prompt": context[:2], "completion": [answer("Good day")]}), "supervised")


@pytest.mark.parametrize("role", ["user", "system", "developer", "tool"])
@pytest.mark.parametrize("weight", [0, 1])
def test_only_assistant_messages_have_a_weight(role, weight):
    message = {"role": role, "content": "Hello", "weight": weight}
    said = refusal({"messages": [message, answer("Good day")]})
    assert said.startswith(f"messages[0].weight is {weight}, but only assistant messages")


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        {"prompt": [USER], "chosen": [answer("b")], "rejected": [answer("b")]},
        {"prompt": [USER], "chosen": [answer("b")],
         "rejected": [answer([{"type": "text", "text": "b"}])]},
        {"input": {"messages": [USER]}, "preferred_output": [answer("b")],
         "non_preferred_output": [answer("b")]},
    ],
)  # fmt: skip
def test_equal_answers_are_no_preference(record):
    assert "its two answers are the same" in refusal(record, "dpo")


def test_conversations_that_are_equal_whole_are_no_preference_either():
    whole = [USER, answer("b")]
    assert refusal({"chosen": whole, "rejected": whole}, "dpo")


@pytest.mark.parametrize(
    "line",
    [
        r'{"text": "\ud800"}',
        r'{"\uDC00": 1}',
        r'{"messages": [{"role": "user", "content": "\ud83d"}]}',
        r'{"messages": [{"role": "user", "content": "a", "name": "\ud800"}]}',
        json.dumps({"messages": [USER, answer("", tool_calls=[
            {"function": {"name": "f", "arguments": r'{"a": "\ud800"}'}}])]}),
    ],
)  # fmt: skip
def test_half_characters_are_refused_wherever_they_are(line):
    with pytest.raises(RecordError, match="half a character"):
        parse(line, "supervised")


def test_pairs_of_escapes_are_characters():
    (text,) = parse(r'{"text": "\ud83d\ude00 \\ud800"}', "supervised")
    assert text.completion == "😀 \\ud800"
