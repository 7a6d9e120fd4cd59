"""Formulas over the scores of graders: numbers, names, + - * / and a few functions."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

_OPERATORS: Mapping[type[ast.AST], Callable[..., float]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.USub: operator.neg,
        ast.UAdd: operator.pos,
    }
)
_FUNCTIONS: Mapping[str, Callable[..., float]] = MappingProxyType(
    {
        "min": min, "max": max, "abs": abs, "floor": math.floor, "ceil": math.ceil,
        "exp": math.exp, "sqrt": math.sqrt, "log": math.log,
    }
)  # fmt: skip
_MOST_PARTS = 200


def check_formula(formula: str, names: frozenset[str]) -> None:
    """Raises ValueError for text that is not a formula, and for variables outside `names`."""
    tree = _parse(formula)
    parts = list(ast.walk(tree))
    if len(parts) > _MOST_PARTS:
        raise ValueError(f"the formula has more than {_MOST_PARTS} parts")
    for node in parts:
        if isinstance(node, ast.Name) and node.id not in names | _FUNCTIONS.keys():
            known = ", ".join(sorted(names))
            raise ValueError(f"the formula names '{node.id}'; its graders are {known}")
    _compute(tree.body, dict.fromkeys(names, 1.0), dry=True)


def compute_formula(formula: str, scores: Mapping[str, float]) -> float:
    """The value. Raises ValueError where it is no finite number, as after a division by 0."""
    try:
        value = float(_compute(_parse(formula).body, scores))
    except (ArithmeticError, TypeError) as error:
        raise ValueError(f"the formula has no value: {error}") from None
    if not math.isfinite(value):
        raise ValueError("the formula has no finite value")
    return value


def _parse(formula: str) -> ast.Expression:
    try:
        return ast.parse(formula, mode="eval")
    except (SyntaxError, MemoryError, RecursionError):
        raise ValueError("calculate_output is no formula") from None


def _compute(node: ast.expr, scores: Mapping[str, float], *, dry: bool = False) -> Any:
    def inner(part: ast.expr) -> Any:
        return _compute(part, scores, dry=dry)

    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.Name) and node.id in scores:
        return scores[node.id]
    if isinstance(node, ast.BinOp) and (binary := _OPERATORS.get(type(node.op))) is not None:
        left, right = inner(node.left), inner(node.right)
        return 1.0 if dry else binary(left, right)
    if isinstance(node, ast.UnaryOp) and (unary := _OPERATORS.get(type(node.op))) is not None:
        return unary(inner(node.operand))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        function = _FUNCTIONS.get(node.func.id)
        arguments = [inner(argument) for argument in node.args]
        if function is not None and arguments:
            return 1.0 if dry else function(*arguments)
    raise ValueError(f"the formula may not have {ast.unparse(node)!r}")
