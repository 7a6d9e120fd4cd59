"""Reads JSON bodies off the event loop, within bounds, and refuses invalid text.

A parser holds the interpreter's lock from the first byte to the last, in a thread as well. What it
takes depends on the number of values more than on bytes, so that the values are counted first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pydantic_core
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.params import Form
from fastapi.routing import APIRoute

from hagane.api.offload import Offload
from hagane.system.errors import InvalidRequestError, TooLargeError

# Parsing and checking so many takes about 30 ms.
_MOST_VALUES = 250_000
_STRUCTURE = b"[{,:"
_STRING = re.compile(rb'"(?:[^"\\]++|\\.?)*+(?:"|\Z)', re.DOTALL)
_MOST_DEPTH = 100
_PIECE = 256 << 10


class JsonRoute(APIRoute):
    """A route whose body is parsed and validated in a thread before the framework sees it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        field = self.body_field
        if field is None or isinstance(field.field_info, Form):
            return handle

        async def read_first(request: Request) -> Response:
            body = await request.body()
            if not body:
                return await handle(request)
            _require_json(request)
            offload: Offload = request.app.state.serving.offload
            size = len(body)
            try:
                value = await offload.run(size, _read, body, field)
                del body
                # The framework validates the value again: a body that is one already stays.
                return await handle(_ReadRequest(request, value, size))
            finally:
                offload.release_memory(size)

        return read_first


def body_size(request: Request) -> int:
    """Bytes of the body that was read: what work on it grows with."""
    size: int = request.state.body_size
    return size


class _ReadRequest(Request):
    """A request whose body of `size` bytes has been read to `value`."""

    def __init__(self, request: Request, value: Any, size: int) -> None:
        super().__init__(request.scope, request.receive)
        self.state.body_size = size
        self._value = value

    async def body(self) -> bytes:
        return b"null"

    async def json(self) -> Any:
        return self._value


def _require_json(request: Request) -> None:
    # Browsers send other types across origins without asking the server first.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not re.fullmatch(r"application/[\w.-]+\+json", kind):
        raise InvalidRequestError(
            "The body must be JSON: send it with the header 'Content-Type: application/json'.",
            code="invalid_content_type",
        )


def _read(body: bytes, field: Any) -> Any:
    value, errors = field.validate(parse(body), {}, loc=("body",))
    if errors:
        raise RequestValidationError(errors)
    return value


def parse(body: bytes) -> Any:
    """The JSON value in `body`.

    Raises InvalidRequestError where it is malformed, or naming the field where text holds half of
    a surrogate pair, and TooLargeError above a number of values.
    """
    if len(body) > _MOST_VALUES and _values(body) > _MOST_VALUES:
        raise TooLargeError(
            f"The request body holds more than {_MOST_VALUES} JSON values; send several requests, "
            "or long lists of tokens as text."
        )
    try:
        return pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        reason = str(error)
    if "escape" in reason or "surrogate" in reason:
        _require_text(body)
    raise InvalidRequestError(f"The request body is not valid JSON: {reason}.", code="invalid_json")


def _values(body: bytes) -> int:
    """How many values the JSON text has at most; exact only where it matters."""
    if (rough := _structural(body)) <= _MOST_VALUES:
        return rough
    # Commas and colons of long texts are no structure.
    count = position = 0
    for string in _STRING.finditer(body):
        count += _structural(body[position : string.start()])
        position = string.end()
        if count > _MOST_VALUES:
            return count
    return count + _structural(body[position:])


def _structural(text: bytes) -> int:
    # By pieces: the event loop gets its turn between them.
    pieces = (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
    return len(text) - sum(len(piece.translate(None, _STRUCTURE)) for piece in pieces)


def _require_text(body: bytes) -> None:
    """Raises InvalidRequestError naming the field whose text UTF-8 cannot express."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return
    for path in not_text(value):
        raise InvalidRequestError(
            f"The text in '{path}' holds half of a surrogate pair (\\ud800 to \\udfff), which is "
            "no character; leave it out.",
            param=path or None,
            code="invalid_unicode",
        )


def not_text(value: Any, path: str = "", depth: int = 0) -> Iterator[str]:
    """The paths of strings in a JSON value that are no text; a key stands for its object's path."""
    if isinstance(value, str):
        if not _is_text(value):
            yield path
    elif depth < _MOST_DEPTH and isinstance(value, dict):
        for key, item in value.items():
            if not _is_text(key):
                yield path
            else:
                yield from not_text(item, f"{path}.{key}" if path else key, depth + 1)
    elif depth < _MOST_DEPTH and isinstance(value, list):
        for index, item in enumerate(value):
            yield from not_text(item, f"{path}[{index}]", depth + 1)


def _is_text(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
