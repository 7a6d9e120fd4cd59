"""Samples of the load, from the same metrics that Prometheus reads."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hagane.api.load_history import LoadHistory
from hagane.api.metrics import Metrics
from hagane.pool.messages import EngineStats
from hagane.store.store import Store


@pytest.fixture
def metrics():
    return Metrics(SimpleNamespace(residents=()), Store.empty().jobs, lambda: ())


@pytest.fixture
def history(metrics):
    stats = EngineStats(running=2, waiting=1, blocks_used=5, blocks_total=10)
    return LoadHistory(SimpleNamespace(stats=stats), metrics, None)


def test_a_sample_has_what_happened_since_the_last(history, metrics):
    metrics.generated_tokens.inc(1000)
    history.sample(100.0, 7)
    assert history.list("15m") == [], "what was before the first is nobody's"
    metrics.generated_tokens.inc(50)
    metrics.prompt_tokens.inc(30)
    for seconds in (0.5, 1.5):
        metrics.end_to_end_latency.observe(seconds)
    history.sample(105.0, 7)
    history.sample(110.0, 7)
    busy, idle = history.list("15m")
    assert (busy["requests"], busy["generated_tokens"], busy["prompt_tokens"]) == (2, 50, 30)
    assert (busy["request_seconds"], busy["first_token_seconds"]) == (1.0, None)
    assert (busy["seconds"], busy["cache_ratio"], busy["free_bytes"]) == (5.0, 0.5, 7)
    assert (idle["requests"], idle["generated_tokens"], idle["request_seconds"]) == (0, 0, None)


def test_minutes_are_kept_for_a_day_and_seconds_for_a_quarter_of_an_hour(history, metrics):
    for step in range(3 * 1500):
        metrics.generated_tokens.inc(2)
        history.sample(20.0 * step, None)
    seconds, minutes = history.list("15m"), history.list("24h")
    assert (len(seconds), len(minutes)) == (180, 1440)
    assert {one["generated_tokens"] for one in seconds} == {2}
    assert {one["generated_tokens"] for one in minutes} == {6}
    assert minutes[-1]["at"] - minutes[0]["at"] == 1439 * 60
