"""From exceptions to OpenAI's error shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from hagane.api.error_shapes import in_dialect
from hagane.system.errors import (
    ConflictError,
    DeadlineExceededError,
    DiskFullError,
    EngineCrashedError,
    EngineUnavailableError,
    HaganeError,
    InvalidRequestError,
    ModelNotFoundError,
    NotFoundError,
    QueueFullError,
    RateLimitError,
    StoreUnavailableError,
    TooLargeError,
)

# OpenAI parameters that need a capability this server does not have, and what that is called.
_UNSUPPORTED = {
    "audio": "audio output",
    "prediction": "predicted output",
    "web_search_options": "web search",
    "modalities": "output other than text",
    "prompt": "stored prompts",
}
# The most of a value, or of a field's path, that an error repeats.
_SHOWN = 80
_LONGEST_PATH = 200
# Errors about several fields, or whose message repeats what was sent.
_WHOLE = {"value_error", "unsupported_content", "unsupported_parameter"}
_BOUNDS = {
    "less_than_equal": "above_max_value",
    "less_than": "above_max_value",
    "greater_than_equal": "below_min_value",
    "greater_than": "below_min_value",
}
_UNION_TAGS = {"str", "int", "float", "bool", "list", "dict", "ids", "lists", "allowed"}


class AuthenticationError(HaganeError):
    """No key, or a wrong one."""

    code = "invalid_api_key"


class PermissionDeniedError(HaganeError):
    """A route that is closed, or closed to the holder of this key."""

    code = "permission_denied"


class BodyTimeoutError(HaganeError):
    """The client sends its body too slowly, or not at all."""

    code = "request_timeout"


class OverloadedError(HaganeError):
    """More is on its way to this server than it holds; try again after `retry_after` seconds."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def error_body(
    message: str, kind: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The JSON of one error, all four keys always there."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def describe(error: HaganeError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """(HTTP status, body, headers) of an error of ours."""
    message = str(error)
    if isinstance(error, InvalidRequestError):
        body = error_body(message, "invalid_request_error", error.param, error.code)
        if isinstance(error, ConflictError):
            # The SDK repeats a request after 409 unless a header forbids it.
            return 409, body, {"x-should-retry": "false"}
        if isinstance(error, TooLargeError):
            return 413, body, {}
        return (404 if isinstance(error, ModelNotFoundError | NotFoundError) else 400), body, {}
    if isinstance(error, AuthenticationError):
        body = error_body(message, "invalid_request_error", None, error.code)
        return 401, body, {"WWW-Authenticate": "Bearer"}
    if isinstance(error, PermissionDeniedError):
        return 403, error_body(message, "invalid_request_error", None, error.code), {}
    if isinstance(error, BodyTimeoutError):
        return 408, error_body(message, "invalid_request_error", None, error.code), {}
    if isinstance(error, QueueFullError | RateLimitError):
        body = error_body(message, "rate_limit_exceeded", None, "rate_limit_exceeded")
        return 429, body, {"Retry-After": str(math.ceil(error.retry_after))}
    body = error_body(message, "server_error", None, error.code)
    if isinstance(error, EngineUnavailableError | OverloadedError | StoreUnavailableError):
        return 503, body, {"Retry-After": str(math.ceil(error.retry_after))}
    if isinstance(error, EngineCrashedError):
        return 503, body, {"Retry-After": "1"}
    if isinstance(error, DiskFullError):
        return 507, body, {}
    return (504 if isinstance(error, DeadlineExceededError) else 500), body, {}


def install(app: FastAPI) -> None:
    """Register the handlers of everything a route or the framework may raise."""

    @app.exception_handler(HaganeError)
    async def ours(request: Request, error: HaganeError) -> JSONResponse:
        status, body, headers = describe(error)
        return JSONResponse(in_dialect(request.url.path, status, body), status, headers)

    @app.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> JSONResponse:
        body = _validation_body(error.errors())
        return JSONResponse(in_dialect(request.url.path, 400, body), 400)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        message = _http_message(request, error)
        body = error_body(message, "invalid_request_error", None, _http_code(error))
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and (methods := _methods(request)):
            headers["Allow"] = ", ".join(methods)
        shown = in_dialect(request.url.path, error.status_code, body)
        return JSONResponse(shown, error.status_code, headers)


def unforeseen(path: str) -> JSONResponse:
    """The answer to a request that met a fault of this program."""
    body = error_body("Internal error; the log has the details.", "server_error", None, None)
    return JSONResponse(in_dialect(path, 500, body), 500)


def _http_message(request: Request, error: HTTPException) -> str:
    if error.status_code not in (404, 405):
        return str(error.detail)
    path = request.url.path[:_LONGEST_PATH]
    if error.status_code == 405:
        return f"{path} does not take {request.method[:16]}; see the header 'Allow'."
    return f"There is no {path} on this server; GET /openapi.json lists what there is."


def _methods(request: Request) -> list[str]:
    """Those of all routes on the request's path; the framework names those of the first.

    Of patterns that match, the path itself is meant if it is one of them, and else the longest: a
    name in the path may hold slashes. None within the folder of the pages, which names its own.
    """
    routes = [r for r in request.app.routes if r.matches(request.scope)[0] is not Match.NONE]
    if not routes:
        return []
    paths = [getattr(route, "path", "") for route in routes]
    path = request.url.path if request.url.path in paths else max(paths, key=len)
    meant = (r for r, its_path in zip(routes, paths, strict=True) if its_path == path)
    return sorted({method for route in meant for method in getattr(route, "methods", None) or ()})


def _http_code(error: HTTPException) -> str:
    return {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")


def _validation_body(errors: Sequence[Any]) -> dict[str, Any]:
    """The first problem, in OpenAI's words as far as they exist."""
    first = errors[0]
    if first["type"] == "json_invalid":
        reason = (first.get("ctx") or {}).get("error", "malformed")
        message = f"The request body is not valid JSON: {reason}."
        return error_body(message, "invalid_request_error", None, "invalid_json")
    param = _path(first["loc"][1:])
    code = _code(first, param)
    if code == "unsupported_parameter" and (feature := _feature(param)) is not None:
        message = f"'{param}': {feature} is not supported by this server; leave it out."
    elif code == "unknown_parameter":
        message = f"Unknown parameter: '{param}'."
    elif code == "missing_required_parameter":
        message = f"Missing required parameter: '{param}'."
        if param is None:
            message = "The request body is empty; send a JSON object."
    else:
        reason = first["msg"].removeprefix("Value error, ")
        message = f"Invalid value for '{param or 'body'}': {reason}."
        # A value derived from several fields is not one that the client sent.
        got = first.get("input")
        if not (first["type"] in _WHOLE and isinstance(got, dict)):
            message += f" Got {_show(got)}."
    return error_body(message, "invalid_request_error", param, code)


def _show(value: Any) -> str:
    """The beginning of a value; one of megabytes is not written out for that."""
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = brief.maxlong = _SHOWN
    shown = brief.repr(value)
    return shown if len(shown) <= _SHOWN else shown[: _SHOWN - 3] + "..."


def _code(error: Any, param: str | None) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        return "unknown_parameter"
    if kind in ("unsupported_content", "unsupported_parameter"):
        return str(kind)
    nothing_else = kind in ("none_required", "literal_error") or _most(error) == 0
    if nothing_else and _feature(param) is not None:
        return "unsupported_parameter"
    if kind == "missing":
        return "missing_required_parameter"
    if kind in _BOUNDS:
        number = "integer" if isinstance(error.get("input"), int) else "decimal"
        return f"{number}_{_BOUNDS[kind]}"
    if kind == "too_short":
        return "empty_array"
    return "invalid_type" if kind.endswith("_type") else "invalid_value"


def _feature(param: str | None) -> str | None:
    """The unsupported feature that a field requests."""
    return _UNSUPPORTED.get(re.split(r"[.\[]", param or "")[0])


def _most(error: Any) -> int | None:
    """The maximum length of the field; 0 where only empty values are accepted."""
    most: int | None = (error.get("ctx") or {}).get("max_length")
    return most


def _path(location: Sequence[str | int]) -> str | None:
    """("messages", 0, "content", "str") -> "messages[0].content"; tags of unions are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in _UNION_TAGS and part.isidentifier() and not part[0].isupper():
            path += f".{part}" if path else part
        if len(path) > _LONGEST_PATH:
            return path[:_LONGEST_PATH] + "..."
    return path or None
