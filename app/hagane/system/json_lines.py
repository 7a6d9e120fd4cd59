"""JSON in one line, for every reader's idea of a line."""

from __future__ import annotations

from typing import Any

import msgspec

# Characters that some clients take for line breaks, as UTF-8, and how JSON may write it instead.
_BREAKS = {b"\xe2\x80\xa8": rb"\u2028", b"\xe2\x80\xa9": rb"\u2029", b"\xc2\x85": rb"\u0085"}


def encode_line(value: Any) -> bytes:
    """As JSON in UTF-8, without a character that ends a line, and without the line's end."""
    # JSON escapes the line breaks of ASCII by itself.
    data = msgspec.json.encode(value)
    for raw, escaped in _BREAKS.items():
        data = data.replace(raw, escaped)
    return data
