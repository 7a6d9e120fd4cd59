"""The figures of edges, as Prometheus reads them from one."""

from __future__ import annotations

import msgspec
from hagane.cluster.edge_metrics import ClusterCollector, EdgeReport
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily


def edge(requests: float, seconds: float) -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("hagane_requests", "Requests", ["status"], registry=registry).labels("200").inc(
        requests
    )

    class Failing:
        def collect(self):
            yield GaugeMetricFamily("hagane_failing", "Whether", value=seconds > 5)

    registry.register(Failing())
    Histogram("hagane_seconds", "Time", buckets=(1, 5), registry=registry).observe(seconds)
    return registry


def test_every_edge_has_its_own_figures_next_to_those_that_are_alike():
    alike = CollectorRegistry()
    Gauge("hagane_blocks", "Blocks", registry=alike).set(7)
    steps: list[str] = []

    class Alike:
        def collect(self):
            steps.append("alike")
            return alike.collect()

    def ask():
        steps.append("asked")
        reports = [EdgeReport.of("a", edge(3, 0.5)), EdgeReport.of("b", edge(4, 9))]
        travelled = msgspec.msgpack.encode(reports)
        return msgspec.msgpack.decode(travelled, type=list[EdgeReport])

    text = generate_latest(ClusterCollector(ask, Alike())).decode()
    lines = text.splitlines()
    assert 'hagane_requests_total{edge="a",status="200"} 3.0' in lines
    assert 'hagane_requests_total{edge="b",status="200"} 4.0' in lines
    assert 'hagane_seconds_bucket{edge="a",le="1.0"} 1.0' in lines
    assert 'hagane_seconds_bucket{edge="b",le="5.0"} 0.0' in lines
    assert 'hagane_seconds_bucket{edge="b",le="+Inf"} 1.0' in lines
    assert 'hagane_failing{edge="b"} 1.0' in lines
    assert "hagane_blocks 7.0" in lines
    assert lines.count("# TYPE hagane_requests_total counter") == 1, "one family, not one an edge"
    assert steps == ["asked", "alike"], "what all have is brought up to date by the asking"
