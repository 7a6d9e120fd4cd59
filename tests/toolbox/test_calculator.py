"""Arithmetic as models write it, and what is refused instead of computed."""

from __future__ import annotations

import pytest
from hagane.toolbox.calculator import calculate
from hagane.toolbox.tool import ToolError


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", "7"),
        ("(17.5 * 3 + 2) / 4", "13.625"),
        ("0.1 + 0.2", "0.3"),
        ("2^64 =", "18446744073709551616"),
        ("１２×３÷４", "9"),
        ("√(16) + abs(-2)", "6"),
        ("round(19.99 * 1.1, 2)", "21.99"),
        ("factorial(20) % 7", "0"),
        ("-7 // 2", "-4"),
        ("round(2.5) + round(1234, -2)", "1202"),
        ("2 * pi", "6.28318530717959"),
    ],
)
def test_values(expression, value):
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("9**9**9", "too large"),
        ("2**14001", "too large"),
        ("factorial(10**6)", "too large"),
        ("1e308 * 10", "too large"),
        ("1e999", "too large"),
        ("1 / 0", "division by zero"),
        ("(-8) ** 0.5", "not real"),
        ("__import__('os')", "not known"),
        ("(1).real", "no arithmetic"),
        ("'a' * 5", "no arithmetic"),
        ("[1 for _ in ()]", "no arithmetic"),
        ("True + 1", "no arithmetic"),
        ("2 +", "can be read"),
        ("-" * 400 + "1", "nested too deeply"),
        ("1+" * 300 + "1", "longer than"),
        ("1" + " " * 5000, "longer than"),
        ("round(1, 2, 3)", "argument"),
        ("round(7, -10**9)", "too large"),
        ("round(7, 2.0)", "too large"),
        ("log(-1)", "positive|domain"),
    ],
)
def test_refusals(expression, reason):
    with pytest.raises(ToolError, match=reason):
        calculate(expression)


def test_an_error_repeats_what_was_read_alone():
    with pytest.raises(ToolError, match=r"^'1 \+' is no arithmetic"):
        calculate("1 +" + " " * 1000)
