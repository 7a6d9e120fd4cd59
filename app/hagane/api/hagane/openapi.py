"""GET /openapi.json: this API described; the routes of admins are shown to the admin key alone."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from hagane.api.access import GuardedRoute, guarded_router
from hagane.api.description import describe_api
from hagane.api.keyring import Access
from hagane.api.serving import get_serving

router = guarded_router(include_in_schema=False)


@router.get("/openapi.json")
def openapi(request: Request) -> dict[str, Any]:
    """The routes that the caller's key may know of, in OpenAPI 3.1."""
    keys = get_serving(request).keys
    shown = keys.holds_admin_key(request)
    routes = [
        route
        for route in request.app.routes
        if isinstance(route, GuardedRoute)
        and route.include_in_schema
        and (shown or route.rule.access is not Access.ADMIN)
    ]
    return describe_api(
        routes,
        title=request.app.title,
        version=request.app.version,
        without_key=frozenset(access for access in Access if not keys.required(access)),
    )
