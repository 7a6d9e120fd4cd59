"""A policy's decisions from counts."""

from __future__ import annotations

import pytest
from hagane.evaluation.canary import ArmCounts, CanaryPolicy, Comparison, decide

POLICY = CanaryPolicy(min_requests=50, max_error_rate=0.02, max_latency_ratio=1.5, min_win_rate=0.5)
FINE = ArmCounts(requests=100, errors=0, seconds=100, tokens=1000)


def seen(candidate: ArmCounts = FINE, wins: int = 0, losses: int = 0, **changes) -> Comparison:
    return Comparison(changes.get("target", FINE), candidate, wins, losses)


@pytest.mark.parametrize(
    ("comparison", "verdict", "reason"),
    [
        (seen(wins=40, losses=5), "promote", "40 wins"),
        (seen(wins=5, losses=40), "roll_back", "5 wins"),
        (seen(wins=12, losses=10), "hold", "12 wins"),
        (seen(), "hold", "0 wins"),
        (seen(ArmCounts(10, 0, 10, 100), wins=40), "hold", "10 of 50 requests"),
        (seen(wins=40, target=ArmCounts(20, 0, 20, 200)), "hold", "20 of 50 requests"),
        # Three failures in a row are no accident, long before min_requests.
        (seen(ArmCounts(5, 5), wins=40), "roll_back", "5 of 5 requests failed"),
        (seen(ArmCounts(10, 1, 9, 90)), "hold", "10 of 50"),
        (seen(ArmCounts(100, 4, 96, 960), wins=40), "roll_back", "4 of 100"),
        (seen(ArmCounts(100, 0, 160, 1000), wins=40), "roll_back", "1.60 times"),
        (seen(ArmCounts(10, 0, 16, 100)), "hold", "10 of 50"),
    ],
)
def test_verdicts(comparison, verdict, reason):
    found = decide(POLICY, comparison)
    assert found[0] == verdict
    assert reason in found[1]


def test_without_a_win_rate_requests_decide():
    policy = CanaryPolicy(min_requests=50)
    assert decide(policy, seen())[0] == "promote"
    assert decide(policy, seen(losses=100))[0] == "promote"
    assert decide(policy, seen(ArmCounts(100, 9, 91, 910)))[0] == "roll_back"
