"""Keywords that llguidance lacks: what grammars of them accept is valid, and not nothing."""

from __future__ import annotations

import json

import jsonschema
import llguidance
import pytest
from hagane.generation.grammars import GrammarChecker, from_json_schema
from hagane.generation.schemas import rewritten
from hagane.system.errors import InvalidRequestError
from hagane.text.matcher import new_matcher

A, B = {"required": ["a"]}, {"required": ["b"]}
OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
CLOSED = OBJECT | {"additionalProperties": False}
OBJECTS = [{}, {"a": 1}, {"b": 1}, {"a": 1, "b": 1}, {"a": 1, "b": 1, "c": 1}, {"c": 1}, "x", 1]
TEXTS = ["", "a", "ab", "abc", "b", "none", "test", "tested", "te", None, 1, 2, True, [], ["a"], {}]
KINDS = {"kind": {"enum": ["x", "y"]}, "a": {"type": "integer"}}
TAGGED = [{"kind": "x"}, {"kind": "y"}, {"kind": "x", "a": 1}, {"kind": "y", "a": 1}, {"a": 1}, {}]


# (schema, values, how many of the values that are valid its grammar accepts)
CASES = [
    (OBJECT | {"oneOf": [A, B]}, OBJECTS, 2),
    ({"oneOf": [OBJECT | A, OBJECT | B, {"type": "string"}]}, OBJECTS, 3),
    ({"oneOf": [{"enum": ["a", "b"]}, {"type": "string"}]}, TEXTS, 7),
    ({"oneOf": [{"$ref": "#/$defs/s"}, {"type": "null"}], "$defs": {"s": {"type": "string"}}},
     TEXTS, 10),
    (CLOSED | {"dependencies": {"a": ["b"]}}, OBJECTS, 3),
    (CLOSED | {"dependentRequired": {"a": ["b"]}}, OBJECTS, 3),
    (CLOSED | {"dependentSchemas": {"a": {"properties": {"b": False}}}}, OBJECTS, 3),
    (CLOSED | {"minProperties": 1}, OBJECTS, 3),
    (CLOSED | {"maxProperties": 1}, OBJECTS, 3),
    (OBJECT | {"minProperties": 2}, OBJECTS, 2),
    ({"type": "string", "not": {"enum": ["test", "none"]}}, TEXTS, 7),
    ({"not": {"type": ["string", "null"]}}, TEXTS, 6),
    (CLOSED | {"not": {"required": ["a", "b"]}}, OBJECTS, 3),
    ({"type": "string", "not": {"minLength": 2}}, TEXTS, 3),
    ({"type": "array", "items": {"type": "string"}, "not": {"items": {"enum": ["b"]}}},
     [[], ["a"], ["b"], ["a", "b"]], 2),
    ({"type": "object", "properties": KINDS, "additionalProperties": False,
      "if": {"properties": {"kind": {"const": "x"}}, "required": ["kind"]},
      "then": {"required": ["a"]}, "else": {"properties": {"a": False}}}, TAGGED, 3),
    ({"type": "object", "propertyNames": {"pattern": "^[ab]$"}}, OBJECTS, 4),
    ({"type": "object", "propertyNames": {"enum": ["a"]}}, OBJECTS, 2),
    ({"type": "string", "format": "of-my-own"}, TEXTS, 9),
    ({"type": "string", "format": "json-pointer"}, ["", "/a/b~0", "/a~2", "a"], 2),
]  # fmt: skip


@pytest.fixture(scope="module")
def checker(tiny_model_dir):
    return GrammarChecker(tiny_model_dir)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return llguidance.LLTokenizer((tiny_model_dir / "tokenizer.json").read_text())


def accepts(tokenizer: llguidance.LLTokenizer, schema: dict, value: object) -> bool:
    matcher = new_matcher(tokenizer, from_json_schema(schema, "p").text)
    return matcher.consume_tokens(tokenizer.tokenize_str(json.dumps(value))) and (
        matcher.is_accepting()
    )


@pytest.mark.parametrize(("schema", "values", "count"), CASES, ids=range(len(CASES)))
def test_what_is_accepted_is_valid(checker, tokenizer, schema, values, count):
    checker.check(from_json_schema(schema, "p"))
    accepted = [value for value in values if accepts(tokenizer, schema, value)]
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.draft202012_format_checker
    )
    assert [value for value in accepted if not validator.is_valid(value)] == []
    assert len(accepted) == count


def test_other_schemas_stay_as_they_are():
    schema = {
        "type": "object",
        "properties": {"not": {"format": "date"}, "oneOf": {"$ref": "#/$defs/if"}},
        "$defs": {"if": {"enum": [{"oneOf": [], "format": "x"}]}},
        "minProperties": 1,
        "required": ["not", "oneOf"],
    }
    assert rewritten(schema) == schema


def test_what_is_in_many_parts_is_refused(checker):
    with pytest.raises(InvalidRequestError, match="parts"):
        from_json_schema({"anyOf": [{}] * 60_000}, "p")


def test_nothing_is_allowed_by_the_complement_of_everything(checker):
    with pytest.raises(InvalidRequestError, match="nsatisfiable"):
        checker.check(from_json_schema({"not": {}}, "p"))


def test_references_into_themselves_end(checker):
    schema = {
        "$defs": {"n": {"oneOf": [{"$ref": "#/$defs/n"}, {"not": {"$ref": "#/$defs/n"}}]}},
        "$ref": "#/$defs/n",
    }
    with pytest.raises(InvalidRequestError):
        checker.check(from_json_schema(schema, "p"))
