"""GET /openapi.json: this API described; the routes of admins are shown to the admin key alone."""

from __future__ import annotations

import json
from functools import lru_cache

from fastapi import FastAPI, Request, Response

from hagane.api.access import GuardedRoute, guarded_router
from hagane.api.description import describe_api
from hagane.api.keyring import Access
from hagane.api.serving import get_serving

router = guarded_router(include_in_schema=False)


@router.get("/openapi.json")
def openapi(request: Request) -> Response:
    """The routes that the caller's key may know of, in OpenAPI 3.1."""
    keys = get_serving(request).keys
    without_key = frozenset(access for access in Access if not keys.required(access))
    document = _document(request.app, keys.holds_admin_key(request), without_key)
    return Response(document, media_type="application/json")


# Describing the routes takes a second of computing; there are two documents for each listener,
# and others once the first key is made.
@lru_cache(maxsize=8)
def _document(app: FastAPI, with_admin: bool, without_key: frozenset[Access]) -> bytes:
    """The description of the application's routes as JSON."""
    routes = [
        route
        for route in app.routes
        if isinstance(route, GuardedRoute)
        and route.include_in_schema
        and (with_admin or route.rule.access is not Access.ADMIN)
    ]
    described = describe_api(routes, title=app.title, version=app.version, without_key=without_key)
    return json.dumps(described, ensure_ascii=False).encode()
