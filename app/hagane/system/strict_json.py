"""JSON texts of strangers: whatever is wrong with one is a ValueError.

>>> loads('{"a": 1}')
{'a': 1}
"""

from __future__ import annotations

import json
from typing import Any


def loads(text: str) -> Any:
    """The value of a JSON text, all of whose strings can be written as UTF-8.

    Raises ValueError for text that is not JSON, is nested too deeply, has a number of more
    digits than Python reads, or holds half of a surrogate pair.
    """
    try:
        value = json.loads(text)
        # Only escapes make such strings, and looking for these costs little.
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError(
            "it has half a character: \\uD800 to \\uDFFF stand for one in pairs only"
        ) from None
    return value
