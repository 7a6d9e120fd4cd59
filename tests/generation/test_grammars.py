"""Grammars: what is compiled, and what is refused by name."""

from __future__ import annotations

import json

import pytest
from hagane.generation.grammars import (
    MOST_BYTES,
    GrammarChecker,
    any_json_object,
    from_choices,
    from_json_schema,
    from_regex,
    from_text,
)
from hagane.system.errors import InvalidRequestError, ModelError


@pytest.fixture(scope="module")
def checker(tiny_model_dir):
    return GrammarChecker(tiny_model_dir)


GOOD = [
    any_json_object("p"),
    from_json_schema({"type": "object", "properties": {"a": {"$ref": "#"}}}, "p"),
    from_json_schema('{"$schema": "http://json-schema.org/nowhere", "type": "integer"}', "p"),
    from_json_schema(True, "p"),
    from_regex(r"[0-9]{3}-(a|b)*", "p"),
    from_regex("(a|a)*(.*)*(.*)*!", "p"),
    from_choices(["yes", "いいえ", 'say "no"', "a\nb"], "p"),
    from_text('start: "x" digit+\ndigit: "0" | "1"', "p"),
    from_text('root ::= "x" [0-9]+', "p"),
]


@pytest.mark.parametrize("grammar", GOOD, ids=range(len(GOOD)))
def test_accepted(checker, grammar):
    checker.check(grammar)
    checker.check(grammar)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "strin"}, "strin"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"propertyNames": {"format": "email"}}, "propertyNames"),
        ({"not": {"pattern": "a"}}, "not"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"oneOf": [{"pattern": "a"}, {"pattern": "b"}]}, "oneOf"),
        ({"type": "string", "format": "regex"}, "regex"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"$ref": "#"}, r"\$ref"),
        ({"allOf": [{"$ref": "#/anyOf/0"}]}, r"\$ref"),
        ({"$ref": "https://example.org/schema"}, "example.org"),
        ({"enum": []}, "Unsatisfiable"),
        ({"type": "string", "pattern": "("}, "regex"),
    ],
)
def test_a_keyword_that_cannot_be_enforced_is_named(checker, schema, said):
    with pytest.raises(InvalidRequestError, match=said) as caught:
        checker.check(from_json_schema({"anyOf": [schema]}, "p"))
    assert caught.value.param == "p"


def deep(levels: int) -> str:
    return '{"type":"array","items":' * levels + "{}" + "}" * levels


@pytest.mark.parametrize(
    "make",
    [
        lambda: from_json_schema("{", "p"),
        lambda: from_json_schema("[1]", "p"),
        lambda: from_json_schema({"x-guidance": {"lenient": True}}, "p"),
        lambda: from_json_schema({"enum": ["x" * MOST_BYTES]}, "p"),
        lambda: from_json_schema(deep(5000), "p"),
        lambda: from_choices([], "p"),
        lambda: from_choices(["a", ""], "p"),
        lambda: from_text("root ::= (", "p"),
        lambda: from_regex("(a|", "p"),
        lambda: from_text('start: "a" b', "p"),
    ],
)
def test_refused_with_the_field(checker, make):
    with pytest.raises(InvalidRequestError) as caught:
        checker.check(make())
    assert caught.value.param == "p"


def test_a_tokenizer_that_cannot_follow_grammars_refuses_them_by_name(tiny_model_dir, tmp_path):
    """One without a decoder, as some exporters write."""
    stored = json.loads((tiny_model_dir / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored | {"decoder": None}))
    checker = GrammarChecker(tmp_path)
    with pytest.raises(ModelError, match="cannot follow grammars"):
        checker.prepare()
    with pytest.raises(InvalidRequestError, match="p cannot be enforced with this model") as error:
        checker.check(any_json_object("p"))
    assert error.value.param == "p"


def chain(rules: int) -> str:
    """Rules each of which refers to the next."""
    lines = [f'r{i}: "a{i}" r{i + 1}' for i in range(rules)]
    return "\n".join(["start: r0", *lines, f'r{rules}: "b"'])


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        # Compiled in the server's own process, it overflowed the stack and ended the server.
        (chain(10_000), "nested too deeply"),
        (chain(10_000).replace("r", "T").replace("staTt", "start"), "nested too deeply"),
        pytest.param("start: A\nA: " + '"a"? ' * 30_000, "processor time", marks=pytest.mark.slow),
    ],
    ids=["rules", "terminals", "options"],
)
def test_a_grammar_that_takes_too_much_costs_its_own_request(checker, grammar, reason):
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        checker.check(from_text(grammar, "p"))
    assert caught.value.param == "p"
    checker.check(from_text(chain(200), "p"))
