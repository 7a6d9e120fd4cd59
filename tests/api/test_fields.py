"""The fields of bodies, as sent and as described."""

from __future__ import annotations

from typing import Literal

import pytest
from hagane.api.fields import Body, Count, Flag
from jsonschema import Draft202012Validator


class Inner(Body):
    count: Count


class Example(Body):
    name: str
    flag: Flag = True
    kind: Literal["a", "b"] = "a"
    inner: Inner | None = None
    always: Inner = Inner(count=1)


@pytest.mark.parametrize("field", ["flag", "kind", "inner", "always"])
def test_null_leaves_an_optional_field_out_and_the_description_says_so(field):
    assert Example.model_validate({"name": "a", field: None}) == Example(name="a")
    schema = Draft202012Validator(Example.model_json_schema())
    assert schema.is_valid({"name": "a", field: None})
    assert not schema.is_valid({"name": None})
    assert not schema.is_valid({"name": "a", "inner": {"count": None}})
