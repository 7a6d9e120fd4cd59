"""Liveness, readiness and the version."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

from hagane import __version__
from hagane.api.access import guarded_router
from hagane.api.serving import get_serving

router = guarded_router()
_NOT_READY = {
    "description": "The engine's state, or the error of a server that takes no connection.",
    "content": {"application/json": {"schema": {"type": "object"}}},
}


@router.get("/health/live")
async def live() -> dict[str, str]:
    """200 as long as the server answers at all."""
    return {"status": "live"}


@router.get("/health", responses={503: _NOT_READY})
@router.get("/health/ready", responses={503: _NOT_READY})
async def ready(request: Request) -> JSONResponse:
    """200 when requests are taken; 503 with the engine's state when not, or without the database.

    `failing` names the background loops whose last round failed; the log says why.
    """
    serving = get_serving(request)
    client = serving.client
    failing = sorted({loop.name for loop in serving.loops() if loop.failing})
    state: dict[str, Any] = {"status": client.state, "failing": failing}
    if client.info is not None:
        state["engine_pid"] = client.info.pid
        state["context_length"] = client.info.context_length
    if not serving.shared.reachable:
        return JSONResponse({**state, "status": "database_unreachable"}, 503, {"Retry-After": "1"})
    if client.state == "ready":
        return JSONResponse(state)
    return JSONResponse(state, 503, {"Retry-After": "1"})


@router.get("/version")
async def version() -> dict[str, str]:
    """The server's version."""
    return {"version": __version__}
