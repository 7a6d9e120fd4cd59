"""Arithmetic on one line, read by Python's grammar and computed without running any of it."""

from __future__ import annotations

import ast
import math
import operator
import unicodedata
from collections.abc import Callable
from typing import Any

from hagane.toolbox.tool import Tool, ToolError, text_argument

_LONGEST = 500
_DEEPEST = 60
# Bits of an integer: what Python writes in decimal without being asked twice.
_MOST_BITS = 14_000
_MOST_FACTORIAL = 1_000
_MOST_DIGITS = 400
_SIGNS = {"^": "**", "×": "*", "÷": "/", "·": "*", "−": "-", "√": "sqrt"}
_CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau}
Number = int | float


def calculate(expression: str) -> str:
    """The value of `expression`: integers exactly, others to 15 digits. Raises ToolError."""
    if len(expression) > 4 * _LONGEST:
        # Not even read: normalizing takes time, too.
        raise ToolError(f"the expression is longer than {_LONGEST} characters")
    text = unicodedata.normalize("NFKC", expression).strip().removesuffix("=")
    for sign, meant in _SIGNS.items():
        text = text.replace(sign, meant)
    if len(text) > _LONGEST:
        raise ToolError(f"the expression is longer than {_LONGEST} characters")
    try:
        value = _value(ast.parse(text.strip(), mode="eval").body, _DEEPEST)
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except OverflowError:
        raise ToolError("the result is too large") from None
    except (SyntaxError, MemoryError, RecursionError):
        raise ToolError(f"{text!r} is no arithmetic that can be read") from None
    except (ValueError, TypeError) as error:
        raise ToolError(str(error)) from None
    return str(value) if isinstance(value, int) else f"{value:.15g}"


def _value(node: ast.expr, depth: int) -> Number:
    if not depth:
        raise ToolError("the expression is nested too deeply")
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _bounded(value)
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, depth - 1)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, depth - 1)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATORS:
            operands = _value(left, depth - 1), _value(right, depth - 1)
            return _bounded(_OPERATORS[type(sign)](*operands))
        case ast.Call(func=ast.Name(id=name), args=given, keywords=[]) if name in _FUNCTIONS:
            return _bounded(_FUNCTIONS[name](*(_value(one, depth - 1) for one in given)))
        case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)):
            raise ToolError(f"'{name}' is not known; there are {', '.join(sorted(_KNOWN))}")
    raise ToolError(f"{ast.unparse(node)!r} is no arithmetic")


def _bounded(value: Any) -> Number:
    if isinstance(value, int) and value.bit_length() <= _MOST_BITS:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise OverflowError if isinstance(value, int | float) else ToolError("the result is not real")


def _power(base: Number, exponent: Number) -> Any:
    exact = isinstance(base, int) and isinstance(exponent, int)
    if exact and abs(base) > 1 and int(base).bit_length() * exponent > 2 * _MOST_BITS:
        raise OverflowError
    return base**exponent


def _small(function: Callable[..., int]) -> Callable[..., int]:
    """A function whose cost grows with its arguments, kept to small ones."""

    def bounded(*values: Number) -> int:
        if any(abs(value) > _MOST_FACTORIAL for value in values):
            raise OverflowError
        return function(*values)

    return bounded


def _round(value: Number, digits: Number = 0) -> Number:
    """`round`, whose cost grows with the digits; to a whole number without them."""
    if not isinstance(digits, int) or abs(digits) > _MOST_DIGITS:
        raise OverflowError
    return round(value, digits) if digits else round(value)


_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(math, name) for name in (
        "sqrt", "cbrt", "exp", "log", "log2", "log10", "sin", "cos", "tan", "asin", "acos", "atan",
        "atan2", "sinh", "cosh", "tanh", "degrees", "radians", "hypot", "floor", "ceil", "gcd",
        "lcm",
    )},
    **{name: _small(getattr(math, name)) for name in ("factorial", "comb", "perm")},
    "ln": math.log, "abs": abs, "round": _round, "min": min, "max": max,
}  # fmt: skip
_KNOWN = {*_FUNCTIONS, *_CONSTANTS}


async def _run(arguments: dict[str, Any]) -> str:
    return calculate(text_argument(arguments, "expression"))


CALCULATOR = Tool(
    "calculator",
    "Computes an arithmetic expression exactly, such as (17.5 * 3 + 2) / 4, 2**64, sqrt(2) or "
    "round(19.99 * 1.1, 2). Angles are in radians.",
    {
        "type": "object",
        "properties": {"expression": {"type": "string", "description": "the expression"}},
        "required": ["expression"],
        "additionalProperties": False,
    },
    _run,
)
