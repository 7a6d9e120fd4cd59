"""The figures of replicas, as Prometheus reads them."""

from __future__ import annotations

from hagane.cluster.connection import ReplicaReport
from hagane.cluster.replica_metrics import ReplicaCollector
from hagane.pool.messages import EngineReady, EngineStats
from prometheus_client import CollectorRegistry


def test_every_replica_of_every_model_has_its_own_figures():
    ready = EngineReady(pid=1, context_length=8, block_size=4, blocks_total=2, load_seconds=0.0)
    one, two = EngineStats(running=1), EngineStats(running=2, steps=9)
    reports = {
        "m": [ReplicaReport("a", ready, one), ReplicaReport("b", ready, two, 70)],
        "other": [ReplicaReport("c", ready, EngineStats(running=3))],
    }
    registry = CollectorRegistry()
    registry.register(ReplicaCollector(lambda: reports))

    def value(name: str, model: str, replica: str) -> float | None:
        return registry.get_sample_value(name, {"model": model, "replica": replica})

    assert value("hagane_replica_requests_running", "m", "a") == 1
    assert value("hagane_replica_requests_running", "m", "b") == 2
    assert value("hagane_replica_requests_running", "other", "c") == 3
    assert value("hagane_replica_engine_steps_total", "m", "b") == 9
    assert value("hagane_replica_queued_tokens", "m", "b") == 70
