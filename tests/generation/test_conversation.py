"""Conversations as templates read them."""

from __future__ import annotations

import pytest
from hagane.generation.conversation import ToolCall


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ('{"a": 1}', {"a": 1}),
        (" ", {}),
        ("not JSON", "not JSON"),
        ("[" * 50_000, "[" * 50_000),
        (r'{"a": "\ud800"}', r'{"a": "\ud800"}'),
    ],
    ids=range(5),
)
def test_arguments_that_are_no_json_stay_text(arguments, read):
    call = ToolCall("call_1", "f", arguments).as_template_input()
    assert call["function"] == {"name": "f", "arguments": read}
