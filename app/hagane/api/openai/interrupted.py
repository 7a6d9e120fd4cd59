"""Responses that a server left unfinished when it ended."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from hagane.store.responses import Responses


def fail_interrupted(responses: Responses) -> None:
    """Mark the responses that a server left unfinished when it ended as failed."""
    for stored in responses.unfinished():
        shown = msgspec.json.decode(stored.body)
        message = "The server ended before this response was finished; send the request again."
        shown |= {"status": "failed", "error": {"code": "server_error", "message": message}}
        body = msgspec.json.encode(shown).decode()
        responses.save(replace(stored, status="failed", body=body))
