"""Text that every machine has: the sources and the reference that Python carries."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from pydoc_data.topics import topics

# Packages whose sources are long, plain and on every platform.
_PACKAGES = ("asyncio", "email", "json", "logging", "unittest", "urllib", "xml")


def samples() -> Iterator[str]:
    """Code in Python and technical English in turn, as long as there is both."""
    library = Path(sysconfig.get_path("stdlib"))
    paths = chain.from_iterable(sorted((library / name).rglob("*.py")) for name in _PACKAGES)
    code = (path.read_text(encoding="utf-8") for path in paths)
    prose = (str(text) for _, text in sorted(topics.items()))
    return chain.from_iterable(zip(code, prose, strict=False))
