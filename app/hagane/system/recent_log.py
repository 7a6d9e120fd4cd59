"""The last lines of a process's log, in memory, for the page that shows them.

>>> recent = RecentLines(2000)
>>> logging.getLogger().addHandler(recent)
>>> recent.find(level=logging.WARNING, text="engine", limit=100)
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Iterable
from itertools import count

import msgspec

_MOST_CHARACTERS = 4000
# Nothing of ours logs a key; what others raise may quote one.
_NAMED = r"(?:key|token|passw(?:or)?d|secret|signature|credential|\bsig)"
_QUOTE = r"\\?[\"']?"
_BEFORE = "|".join(
    (
        rf"\bauthorization{_QUOTE}\s*[:=]\s*{_QUOTE}(?:(?:basic|bearer|token)\s+)?",
        r"\bbearer\s+",
        r"\bsk-",
        r"\bhf_",
        rf"{_NAMED}={_QUOTE}",
        # Headers, and fields of JSON.
        rf"(?:[-_](?:key|token|secret)|apikey|passw(?:or)?d|secret|signature)\s*:\s*{_QUOTE}",
        rf"{_NAMED}\\?[\"']\s*:\s*{_QUOTE}",
    )
)
# To the end of its quotes, where it is in some.
_VALUE = r"(?:(?<=\")[^\"\\]+|(?<=')[^'\\]+|[^\s'\",;&]+)"
_IN_ADDRESS = r"(://)[^\s/'\"]+(?=@)"
_SECRETS = re.compile(f"(?i)({_BEFORE}){_VALUE}|{_IN_ADDRESS}")


class LogLine(msgspec.Struct, frozen=True):
    """A line of the log. `time` is in Unix seconds, `level` the number of `logging`."""

    time: float
    level: int
    logger: str
    message: str
    request_id: str
    process: str = "server"


class RecentLines(logging.Handler):
    """Keeps the last `most` records as numbered lines, without what looks like a secret."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._lines: deque[tuple[int, LogLine]] = deque(maxlen=most)
        self._numbers = count(1)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record of this process."""
        try:
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + (self.formatter or logging.Formatter()).formatException(
                    record.exc_info
                )
        except Exception:  # the contract of handlers: a bad line must not fail its caller
            self.handleError(record)
            return
        asked = getattr(record, "request_id", "-")
        self.add([LogLine(record.created, record.levelno, record.name, text, asked)])

    def add(self, lines: Iterable[LogLine]) -> None:
        """Keep lines, those of another process among them."""
        for line in lines:
            said = _SECRETS.sub(r"\1\2[hidden]", line.message[:_MOST_CHARACTERS])
            kept = msgspec.structs.replace(line, message=said)
            self._lines.append((next(self._numbers), kept))

    def take(self) -> list[LogLine]:
        """All lines; they are kept no longer."""
        taken = []
        # One by one: other threads may log meanwhile.
        while self._lines:
            taken.append(self._lines.popleft()[1])
        return taken

    def find(
        self, *, level: int = 0, text: str = "", since: float = 0.0, after: int = 0, limit: int
    ) -> list[tuple[int, LogLine]]:
        """The last `limit` lines with their numbers, oldest first, that pass the filter.

        `text` is looked for in message, logger and request id, in any case; `after` is a number.
        """
        wanted = text.casefold()
        found: list[tuple[int, LogLine]] = []
        for number, line in reversed([*self._lines]):
            if number <= after or len(found) == limit:
                break
            said = f"{line.message}\n{line.logger}\n{line.request_id}".casefold()
            if line.level >= level and line.time >= since and wanted in said:
                found.append((number, line))
        return found[::-1]
