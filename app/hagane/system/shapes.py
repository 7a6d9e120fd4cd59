"""Validate JSON from outside against a msgspec struct."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from hagane.system.errors import ModelError

_Shape = TypeVar("_Shape")
_PATH = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)


def shaped(raw: Mapping[str, Any], shape: type[_Shape], source: str) -> _Shape:
    """Convert `raw` to a `shape`.

    Raises ModelError naming `source`, the key, its value and the expected type.
    """
    try:
        return msgspec.convert(raw, shape)
    except msgspec.ValidationError as error:
        match = _PATH.fullmatch(str(error))
        if match is None:
            raise ModelError(f"{source}: {error}") from None
        problem, path = match.groups()
        key = re.split(r"[.\[]", path)[0]
        value = repr(raw.get(key))
        shown = value if len(value) <= 80 else f"{value[:77]}..."
        raise ModelError(
            f"{source}: {path or 'it'} is {shown}; {problem[:1].lower()}{problem[1:]}"
        ) from None
