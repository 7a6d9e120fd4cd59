"""The lines of a batch's files: requests that are checked, results that are collected."""

from __future__ import annotations

import codecs
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hagane.pool.messages import IDLE_PRIORITY
from hagane.system.json_lines import encode_line

MOST_REQUESTS = 50_000
# A batch's, and so that of each of its requests, which may stand still for others most of it.
WINDOW_SECONDS = 86_400
_MOST_ERRORS = 100
_LONGEST_LINE = 16 << 20
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")


@dataclass(frozen=True)
class BatchRequest:
    """One line of the input, `number` counting from 1."""

    number: int
    custom_id: str
    url: str
    body: dict[str, Any]

    def as_json(self) -> bytes:
        """The body that is sent: at idle priority and for the whole window unless it says so."""
        defaults = {"priority": IDLE_PRIORITY, "timeout": WINDOW_SECONDS}
        return msgspec.json.encode({**defaults, **self.body})


@dataclass(frozen=True)
class BatchError:
    """The error of a line."""

    code: str
    message: str
    param: str | None
    line: int

    def as_json(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        return vars(self)


def check_input(path: Path, endpoint: str) -> tuple[int, list[BatchError]]:
    """(requests, the first errors) of an input file; reads all of it, a line at a time."""
    errors: list[BatchError] = []
    seen: set[str] = set()
    count = 0
    for number, line in _lines(path):
        count += 1
        error = _check(number, line, endpoint, seen)
        if error is not None and len(errors) < _MOST_ERRORS:
            errors.append(error)
        if count > MOST_REQUESTS:
            message = f"The file has more than {MOST_REQUESTS} requests; split it."
            return count, [*errors, BatchError("too_many_requests", message, None, number)]
    if not count:
        errors.append(BatchError("empty_file", "The file has no requests.", None, 1))
    return count, errors


def read_requests(path: Path) -> Iterator[BatchRequest]:
    """The requests of a file that was checked."""
    for number, line in _lines(path):
        read = msgspec.json.decode(line)
        yield BatchRequest(number, read["custom_id"], read["url"], read["body"])


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank; of one that is too long, what is too much ends it."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE + 1):
            number += 1
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if text.strip():
                yield number, text
            while len(line) > _LONGEST_LINE and not line.endswith(b"\n"):
                line = file.readline(_LONGEST_LINE + 1)


def _check(number: int, line: bytes, endpoint: str, seen: set[str]) -> BatchError | None:
    if len(line) > _LONGEST_LINE:
        message = f"This line is longer than {_LONGEST_LINE >> 20} MiB."
        return BatchError("invalid_request", message, None, number)
    try:
        read = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        return BatchError("invalid_json_line", f"This line is not JSON: {error}.", None, number)
    if not isinstance(read, dict):
        return BatchError("invalid_request", "This line is no JSON object.", None, number)
    name = read.get("custom_id")
    if not isinstance(name, str) or not 1 <= len(name) <= 512:
        message = "'custom_id' must be a text of 1 to 512 characters."
        return BatchError("missing_required_parameter", message, "custom_id", number)
    if name in seen:
        message = f"'custom_id' is '{name[:64]}', as on a line before; each must be its own."
        return BatchError("duplicate_custom_id", message, "custom_id", number)
    seen.add(name)
    if read.get("method") != "POST":
        return BatchError("invalid_method", "'method' must be 'POST'.", "method", number)
    if read.get("url") != endpoint:
        message = f"'url' must be '{endpoint}', the endpoint of the batch."
        return BatchError("mismatched_url", message, "url", number)
    if not isinstance(read.get("body"), dict):
        return BatchError("invalid_body", "'body' must be a JSON object.", "body", number)
    if read["body"].get("stream"):
        message = "'stream' is for requests of their own; leave it out."
        return BatchError("invalid_body", message, "body.stream", number)
    return None


@dataclass(frozen=True)
class BatchResult:
    """One line of the results."""

    number: int
    custom_id: str
    status: int | None
    request_id: str | None
    body: bytes
    error: dict[str, str] | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the line goes to the output file, and not to that of errors."""
        return self.status == 200

    def as_line(self) -> bytes:
        """In OpenAI's shape, a line."""
        response = None
        if self.status is not None:
            body = msgspec.Raw(self.body)
            response = {"status_code": self.status, "request_id": self.request_id, "body": body}
        shown = {
            "id": f"batch_req_{uuid.uuid4().hex}",
            "custom_id": self.custom_id,
            "response": response,
            "error": self.error,
        }
        return encode_line(shown) + b"\n"


class ResultLog:
    """Results as they come, in a file that survives a crash: a mark, the line's number, the line.

    A line that a crash cut short is dropped when the file is opened again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[int] = set()
        self.completed = self.failed = 0
        self.bytes = 0
        self._read()
        self._file = path.open("ab")

    def _read(self) -> None:
        if not self.path.exists():
            return
        whole = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                mark, number, _ = line.split(b" ", 2)
                self._count(mark == b"+", int(number))
        self.bytes = whole
        with self.path.open("ab") as file:
            file.truncate(whole)

    def add(self, result: BatchResult) -> None:
        """Append a result."""
        mark = b"+" if result.succeeded else b"-"
        self.bytes += self._file.write(b"%b %d %b" % (mark, result.number, result.as_line()))
        self._file.flush()
        self._count(result.succeeded, result.number)

    def lines(self, *, succeeded: bool) -> Iterator[bytes]:
        """The lines of one of the two result files."""
        wanted = b"+" if succeeded else b"-"
        with self.path.open("rb") as file:
            for line in file:
                mark, _, rest = line.split(b" ", 2)
                if mark == wanted:
                    yield rest

    def close(self) -> None:
        """No more results come."""
        self._file.close()

    def _count(self, succeeded: bool, number: int) -> None:
        self.done.add(number)
        self.completed += succeeded
        self.failed += not succeeded
