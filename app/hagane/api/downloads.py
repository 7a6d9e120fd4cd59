"""Files as answers, whose refusals are errors of ours."""

from __future__ import annotations

import json

from fastapi.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from hagane.api.errors import error_body

_RANGE_ERRORS = {
    400: "The header 'Range' cannot be read; send 'bytes=FIRST-LAST', or leave it out.",
    416: "The header 'Range' names bytes that the file does not have; 'Content-Range' tells how "
    "many there are.",
}


class Download(FileResponse):
    """A file, whole or by ranges. A range that cannot be had is answered in the error shape."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body: bytes | None = None

        async def send_in_shape(message: Message) -> None:
            nonlocal body
            if message["type"] == "http.response.start" and message["status"] in _RANGE_ERRORS:
                text = _RANGE_ERRORS[message["status"]]
                error = error_body(text, "invalid_request_error", None, "invalid_range")
                body = json.dumps(error).encode()
                kept = [h for h in message["headers"] if h[0] == b"content-range"]
                head = [
                    (b"content-type", b"application/json"),
                    (b"content-length", b"%d" % len(body)),
                ]
                message = {**message, "headers": [*head, *kept]}
            elif body is not None:
                message = {**message, "body": body}
            await send(message)

        await super().__call__(scope, receive, send_in_shape)
