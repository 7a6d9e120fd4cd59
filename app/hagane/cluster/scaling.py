"""How many replicas there shall be: Ray Serve's interface for autoscaling policies.

Requests go to replicas past Serve, so that it has no counts of its own; replicas report what they
have to do (`QUEUED_TOKENS`, `REQUESTS`). Serve keeps the bounds, and waits before it follows.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

QUEUED_TOKENS = "queued_tokens"
REQUESTS = "requests"


class Reported(Protocol):
    """Of Serve's `AutoscalingContext`: the figures of each replica, by name and replica."""

    aggregated_metrics: dict[str, dict[Any, float]]
    current_num_replicas: int


class LoadPolicy:
    """As many replicas as the queued prompt tokens need, or the requests in flight if those need
    more.

    >>> LoadPolicy(queued_tokens=1000, requests=16)(context)   # 2,500 tokens wait
    (3, {})
    """

    def __init__(self, queued_tokens: float, requests: float) -> None:
        self._targets = {QUEUED_TOKENS: queued_tokens, REQUESTS: requests}

    def __call__(self, context: Reported) -> tuple[int, dict[str, Any]]:
        """The number, and no state to keep."""
        figures = context.aggregated_metrics or {}
        if not any(figures.get(name) for name in self._targets):
            return context.current_num_replicas, {}  # nothing was reported yet
        needed = [
            math.ceil(sum(figures.get(name, {}).values()) / target)
            for name, target in self._targets.items()
        ]
        return max(1, *needed), {}
