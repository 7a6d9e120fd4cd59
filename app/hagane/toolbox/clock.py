"""The date and the time, anywhere."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from hagane.toolbox.tool import Tool, ToolError, text_argument


def time_in(zone: str, now: datetime) -> str:
    """`now` in a zone such as Asia/Tokyo, with the day of the week and the offset.

    Raises ToolError for a zone that is not known.
    """
    try:
        local = now.astimezone(UTC if zone.upper() == "UTC" else ZoneInfo(zone))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ToolError(
            f"the time zone {zone!r} is not known; use one of IANA's names, such as Asia/Tokyo"
        ) from None
    offset = local.strftime("%z")
    return f"{local:%A, %Y-%m-%d %H:%M:%S}, {zone} (UTC{offset[:3]}:{offset[3:]})"


async def _run(arguments: dict[str, Any]) -> str:
    return time_in(text_argument(arguments, "time_zone", "UTC"), datetime.now(UTC))


CLOCK = Tool(
    "clock",
    "Gives the current date, day of the week and time, of the user's time zone unless another "
    "is given.",
    {
        "type": "object",
        "properties": {
            "time_zone": {"type": "string", "description": "IANA's name, such as Asia/Tokyo"}
        },
        "additionalProperties": False,
    },
    _run,
)
