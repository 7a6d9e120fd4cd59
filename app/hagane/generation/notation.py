"""What a model writes around its tool calls, as data: from it come the grammars of calls."""

from __future__ import annotations

import re
from dataclasses import dataclass

Pieces = tuple[str | re.Pattern[str], ...]
"""Texts one after the other, a marker as a text of its own, and patterns."""


@dataclass(frozen=True)
class Members:
    """Arguments that are written one by one, not as one JSON object.

    Strings stand as they are, other values as JSON.
    """

    before_key: Pieces
    before_value: Pieces
    after: Pieces


@dataclass(frozen=True)
class Notation:
    """A call is `before`, the tool's name, `between`, its arguments, `after`.

    `opening` and `closing` stand around all calls of a stretch, `separator` between two of them.
    With `beginnings`, a pattern, calls are a whole answer, and texts begin with none of these. The
    arguments are one JSON object, or `members`.

        Notation(before=("<tool_call>", '\\n{"name": "'), between=('", "arguments": ',),
                 after=("}\\n", "</tool_call>"))
    """

    before: Pieces
    between: Pieces
    after: Pieces = ()
    opening: Pieces = ()
    separator: Pieces = ()
    closing: Pieces = ()
    members: Members | None = None
    beginnings: str | None = None
