"""The API in OpenAPI's words: what FastAPI knows of the routes, and what the table adds to it."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi.openapi.utils import get_openapi

from hagane.api.access import GuardedRoute
from hagane.api.error_shapes import is_anthropic
from hagane.api.keyring import Access

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {
                    "type": "string",
                    "enum": ["invalid_request_error", "rate_limit_exceeded", "server_error"],
                },
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ANTHROPIC_ERROR = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}
# What any route may answer: to what is no valid request of it; to a host that is not allowed or a
# key that does not suffice; to a body that comes too slowly or is too long; to headers that are
# too long; while too many connections or bodies are on their way.
_EVERYWHERE = (400, 403, 408, 413, 431, 503)
_KEYS = {
    "ApiKey": {"type": "http", "scheme": "bearer", "description": "One of api_keys."},
    "AdminKey": {"type": "http", "scheme": "bearer", "description": "The admin_key."},
    "MetricsKey": {"type": "http", "scheme": "bearer", "description": "The metrics_key."},
}
_KEYS_OF = {
    Access.OPEN: (),
    Access.METRICS: ("MetricsKey", "AdminKey"),
    Access.CHAT: ("ApiKey", "AdminKey"),
    Access.ADMIN: ("AdminKey",),
}
# Each event's data is one JSON object, or [DONE].
_EVENTS = {
    "itemSchema": {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"type": "string"}},
    }
}
_RETRY_AFTER = {"Retry-After": {"schema": {"type": "string"}, "description": "seconds"}}


def describe_api(
    routes: Sequence[GuardedRoute], *, title: str, version: str, without_key: frozenset[Access]
) -> dict[str, Any]:
    """The document. The routes of the kinds in `without_key` need no key as things are."""
    document = get_openapi(title=title, version=version, routes=routes)
    paths: dict[str, Any] = document.setdefault("paths", {})
    for route in routes:
        for method in (route.methods or set()) - {"HEAD"}:
            operation = paths[route.path_format][method.lower()]
            open_now = route.rule.access in without_key
            operation["security"] = _security(route.rule.access, open_now)
            operation["responses"] = _responses(route, operation["responses"], open_now)
    components = document.setdefault("components", {})
    schemas: dict[str, Any] = components.setdefault("schemas", {})
    # Of errors that are not sent.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Error"] = _ERROR
    schemas["AnthropicError"] = _ANTHROPIC_ERROR
    components["securitySchemes"] = _KEYS
    return document


def _security(access: Access, open_now: bool) -> list[dict[str, list[str]]]:
    keys: list[dict[str, list[str]]] = [{name: []} for name in _KEYS_OF[access]]
    return [*keys, {}] if open_now and keys else keys


def _responses(route: GuardedRoute, known: dict[str, Any], open_now: bool) -> dict[str, Any]:
    responses = {code: response for code, response in known.items() if code != "422"}
    if route.rule.events:
        responses["200"]["content"]["text/event-stream"] = _EVENTS
    shape = "AnthropicError" if is_anthropic(route.path) else "Error"
    refused = {*_EVERYWHERE, *route.rule.refusals}
    if _KEYS_OF[route.rule.access] and not open_now:
        refused.add(401)
    for code in sorted(refused):
        described: dict[str, Any] = {
            "description": HTTPStatus(code).phrase,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}},
        }
        if code in (429, 503):
            described["headers"] = _RETRY_AFTER
        responses.setdefault(str(code), described)
    return responses
