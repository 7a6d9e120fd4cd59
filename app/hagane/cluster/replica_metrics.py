"""Each replica's figures in the metrics of an edge, next to their sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hagane.api.metrics import engine_figures
from hagane.cluster.connection import ReplicaReport

_LABELS = ["model", "replica"]


class ReplicaCollector(Collector):
    """The latest `reports` of each model's replicas, at each scrape by Prometheus."""

    def __init__(self, reports: Callable[[], Mapping[str, Iterable[ReplicaReport]]]) -> None:
        self._reports = reports

    def collect(self) -> Iterator[Metric]:
        """As Prometheus' client wants them."""
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        queued = GaugeMetricFamily(
            "hagane_replica_queued_tokens",
            "Prompt tokens of requests that have no token yet",
            labels=_LABELS,
        )
        for model, reports in self._reports().items():
            for report in reports:
                labels = [model, report.replica]
                queued.add_metric(labels, report.queued_tokens)
                for name, (kind, text, value) in engine_figures(report.stats).items():
                    if name not in families:
                        families[name] = kind(f"hagane_replica_{name}", text, labels=_LABELS)
                    families[name].add_metric(labels, float(value))
        yield queued
        yield from families.values()
