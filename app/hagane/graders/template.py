"""Fills `{{ item.question }}` and `{{ sample.output_text }}` in texts of graders and evals."""

from __future__ import annotations

import json
import re
from typing import Any

from hagane.system.errors import InvalidRequestError

_PLACE = re.compile(r"\{\{\s*([^{}\s]{1,256})\s*\}\}")


def fill(text: str, values: dict[str, Any]) -> str:
    """`text` with its places filled; values that are not text are written as JSON.

    Raises InvalidRequestError naming a path that leads nowhere.
    """

    def value(match: re.Match[str]) -> str:
        found = look_up(match[1], values)
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)

    return _PLACE.sub(value, text)


def places(text: str) -> list[str]:
    """The paths that `text` names."""
    return _PLACE.findall(text)


def look_up(path: str, values: dict[str, Any]) -> Any:
    """The value at a dotted path such as `item.answers.0`. Raises InvalidRequestError."""
    found: Any = values
    for part in path.split("."):
        try:
            found = found[int(part)] if isinstance(found, list) else found[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise InvalidRequestError(
                f"The template asks for '{path}', but there is no '{part}'.", param="template"
            ) from None
    return found
