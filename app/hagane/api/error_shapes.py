"""Errors in the shape of the dialect that a path belongs to."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

ANTHROPIC_PATH = "/v1/messages"
# https://docs.anthropic.com/en/api/errors
_ANTHROPIC_TYPES = MappingProxyType(
    {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        500: "api_error",
        503: "overloaded_error",
        504: "timeout_error",
        507: "api_error",
    }
)


def in_dialect(path: str, status: int, body: dict[str, Any]) -> dict[str, Any]:
    """An error's `body`, which is in OpenAI's shape, as clients of `path` expect it."""
    return anthropic_error(status, body) if is_anthropic(path) else body


def is_anthropic(path: str) -> bool:
    """Whether a path belongs to the Messages dialect."""
    return path == ANTHROPIC_PATH or path.startswith(f"{ANTHROPIC_PATH}/")


def anthropic_error(status: int, body: dict[str, Any]) -> dict[str, Any]:
    """An error in Anthropic's shape, from its `body` in OpenAI's."""
    error = body["error"]
    message = error["message"]
    if error["code"] == "context_length_exceeded":
        # Clients that shorten conversations match these words.
        message = f"prompt is too long: {message}"
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}}
