"""Requests that the server sends to itself: through the same guards, checks and errors as any."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Scope

# In a scope, where nothing that is sent over a connection can put it.
_CALLER = "hagane.caller"


@dataclass(frozen=True)
class InternalResponse:
    """A route's answer; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def caller_of(scope: Scope) -> str | None:
    """The label of the key in whose name the server asks itself; None for all other requests."""
    label: str | None = scope.get(_CALLER)
    return label


async def post(app: ASGIApp, path: str, body: bytes, caller: str) -> InternalResponse:
    """Send JSON to a route of `app` in the name of the key with the label `caller`.

    Cancelling it hangs up.
    """
    scope = _scope(path, len(body), caller)
    sent = False
    status = 500
    answered: dict[str, str] = {}
    pieces: list[bytes] = []

    async def receive() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        # Nobody hangs up but by cancelling.
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            answered.update(
                {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in message["headers"]}
            )
        elif message["type"] == "http.response.body":
            pieces.append(message.get("body", b""))

    await app(scope, receive, send)
    return InternalResponse(status, answered, b"".join(pieces))


def _scope(path: str, length: int, caller: str) -> Scope:
    """The ASGI scope of a request with a JSON body of `length` bytes."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(length).encode()),
    ]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
        "state": {},
        _CALLER: caller,
    }
