"""GET /admin: the page of administration, on the listener that has the admin routes."""

from __future__ import annotations

from fastapi import Request, Response

from hagane.api.access import guarded_router
from hagane.api.hagane import web

router = guarded_router(include_in_schema=False)


@router.api_route("/admin", methods=["GET", "HEAD"])
async def admin(request: Request) -> Response:
    """The page. It holds no data: its scripts ask for that with the admin key."""
    return await web.pages.get_response("admin/index.html", request.scope)
