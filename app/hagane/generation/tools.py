"""Tools that an answer may or must call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Tools:
    """`functions` are names and JSON schemas of arguments; with `required`, one must be called.

    `parallel` allows several calls in one answer. Where the model may call but need not, schemas
    that cannot be enforced are an error if they are `strict`, and are left out otherwise.
    """

    functions: dict[str, dict[str, Any]] = field(default_factory=dict)
    required: bool = False
    parallel: bool = True
    strict: bool = False


NO_TOOLS = Tools()
