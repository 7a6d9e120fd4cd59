"""The time of day in a zone."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hagane.toolbox.clock import time_in
from hagane.toolbox.tool import ToolError

NOW = datetime(2026, 11, 28, 20, 30, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "shown"),
    [
        ("UTC", "Saturday, 2026-11-28 20:30:05, UTC (UTC+00:00)"),
        ("Asia/Tokyo", "Sunday, 2026-11-29 05:30:05, Asia/Tokyo (UTC+09:00)"),
        ("America/St_Johns", "Saturday, 2026-11-28 17:00:05, America/St_Johns (UTC-03:30)"),
    ],
)
def test_zones(zone, shown):
    assert time_in(zone, NOW) == shown


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../../etc/passwd", "", "a\0b"])
def test_what_is_no_zone(zone):
    with pytest.raises(ToolError, match="not known"):
        time_in(zone, NOW)
