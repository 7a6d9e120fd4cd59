"""/admin/logs and /admin/history: what the server said and did lately. Admin only."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal

from fastapi import Query, Request

from hagane.api.access import guarded_router
from hagane.api.load_history import Period
from hagane.api.serving import get_serving
from hagane.system.logging import recent_lines
from hagane.system.recent_log import LogLine

router = guarded_router(prefix="/admin")

Level = Literal["debug", "info", "warning", "error"]


@router.get("/logs")
def list_logs(
    level: Level = "debug",
    text: Annotated[str, Query(max_length=200)] = "",
    since: Annotated[float, Query(ge=0)] = 0.0,
    after: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=2000)] = 200,
) -> dict[str, Any]:
    """The last lines of the server's and its engines' log, oldest first.

    Of at least `level`, with `text` in them in any case, logged at `since` (Unix seconds) or later,
    and numbered above `after`. What looks like a key is hidden.
    """
    least = logging.getLevelNamesMapping()[level.upper()]
    found = recent_lines().find(level=least, text=text, since=since, after=after, limit=limit)
    return {"object": "list", "data": [_describe(*one) for one in found], "has_more": False}


@router.get("/history")
async def history(request: Request, period: Period = "15m") -> dict[str, Any]:
    """The load on this server since it started: every 5 seconds, or every minute for a day."""
    return {"object": "list", "data": get_serving(request).history.list(period), "has_more": False}


def _describe(number: int, line: LogLine) -> dict[str, Any]:
    return {
        "id": number,
        "object": "log.line",
        "created_at": line.time,
        "level": logging.getLevelName(line.level).lower(),
        "logger": line.logger,
        "message": line.message,
        "request_id": None if line.request_id == "-" else line.request_id,
        "process": line.process,
    }
