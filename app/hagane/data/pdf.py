"""The text of PDFs, read in a process that has neither network nor files."""

from __future__ import annotations

import base64
import importlib.util
import sys
from dataclasses import dataclass
from functools import cache

from hagane.system.errors import InvalidRequestError
from hagane.system.sandbox import Sandbox, SandboxError

MOST_PAGES = 1_000
MOST_CHARACTERS = 200_000
_SECONDS = 30.0
_MEMORY = 1 << 30
_PROGRAM = "hagane.data.pdf_program"


@dataclass(frozen=True)
class PdfText:
    """The text of the first `pages` pages `of` all."""

    text: str
    pages: int
    of: int


def pdf_text(content: bytes) -> PdfText:
    """Read a PDF; it takes up to half a minute.

    Raises InvalidRequestError for one that cannot be read, and where the library is missing.
    """
    if importlib.util.find_spec("pypdf") is None:
        raise InvalidRequestError(
            "This server reads no PDFs; whoever runs it can: pip install 'hagane[pdf]'.",
            code="unsupported_document",
        )
    encoded = base64.b64encode(content).decode("ascii")
    try:
        found = _sandbox().call(f"{_PROGRAM}:text_of", encoded, MOST_PAGES, MOST_CHARACTERS)
    except SandboxError as error:
        raise InvalidRequestError(
            f"The PDF cannot be read: {error}.", code="unreadable_document"
        ) from None
    text = PdfText(**found)
    if not text.text:
        raise InvalidRequestError(
            "The PDF has no text: its pages are pictures.", code="unreadable_document"
        )
    return text


@cache
def _sandbox() -> Sandbox:
    confined = _PROGRAM if sys.platform == "linux" else ""
    return Sandbox(processes=1, seconds=_SECONDS, memory=_MEMORY, confined=confined)
