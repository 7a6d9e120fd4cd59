"""How many replicas the figures of the replicas ask for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hagane.cluster.scaling import LoadPolicy


@dataclass
class Context:
    """What Serve passes on."""

    aggregated_metrics: dict[str, dict[str, float]]
    current_num_replicas: int = 2


@pytest.mark.parametrize(
    ("queued", "requests", "wanted"),
    [
        ({"a": 1500.0, "b": 1000.0}, {"a": 1.0, "b": 1.0}, 3),
        ({"a": 0.0, "b": 10.0}, {"a": 20.0, "b": 20.0}, 5),
        ({"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 0.0}, 1),
    ],
)
def test_whichever_needs_more(queued, requests, wanted):
    policy = LoadPolicy(queued_tokens=1000, requests=8)
    context = Context({"queued_tokens": queued, "requests": requests})
    assert policy(context) == (wanted, {})


def test_before_the_first_report_nothing_changes():
    assert LoadPolicy(1000, 8)(Context({}))[0] == 2
