"""JSON that Python's reader takes, or fails on by something other than a ValueError."""

from __future__ import annotations

import pytest
from hagane.system.strict_json import loads


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 5000,
        r'"\ud800"',
        r'{"\uDFFF": 1}',
        r'[{"a": ["\uD83D x"]}]',
        r'"\ude00\ud83d"',
    ],
    ids=range(9),
)
def test_whatever_is_wrong_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        loads(text)


def test_pairs_of_escapes_and_escaped_escapes_are_texts():
    assert loads(r'["\ud83d\ude00", "\\ud800"]') == ["😀", r"\ud800"]
