"""The text of PDFs, read in a process that has neither network nor files."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import logging
import sys
from dataclasses import dataclass
from functools import cache

from hagane.system.errors import InvalidRequestError, QueueFullError
from hagane.system.installation import install_command
from hagane.system.sandbox import Sandbox, SandboxError

logger = logging.getLogger(__name__)

MOST_PAGES = 1_000
MOST_CHARACTERS = 200_000
MOST_WAITING = 8
_SECONDS = 30.0
_MEMORY = 1 << 30
_PROGRAM = "hagane.data.pdf_program"


@dataclass(frozen=True)
class PdfText:
    """The text of the first `pages` pages `of` all."""

    text: str
    pages: int
    of: int


class PdfReader:
    """Reads PDFs of many one after the other; the others wait without holding a thread."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(1)
        self._present = 0

    async def read(self, content: bytes) -> PdfText:
        """As `pdf_text`; raises QueueFullError, too, where MOST_WAITING wait already."""
        if self._present > MOST_WAITING:
            raise QueueFullError(f"{MOST_WAITING} PDFs are waiting to be read.", retry_after=5.0)
        self._present += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(pdf_text, content)
        finally:
            self._present -= 1


def pdf_text(content: bytes) -> PdfText:
    """Read a PDF; it takes up to half a minute.

    Raises InvalidRequestError for one that cannot be read, and where the library is missing.
    """
    if importlib.util.find_spec("pypdf") is None:
        # The paths of this machine are for whoever runs it.
        logger.warning("a PDF was refused; to read them: %s", install_command("pdf"))
        raise InvalidRequestError(
            "This server reads no PDFs; whoever runs it can install what that needs, the extra "
            "'pdf': its log has the command.",
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
