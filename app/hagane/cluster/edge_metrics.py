"""What each edge counts of its own requests, in the metrics of whichever edge is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
from prometheus_client.core import Metric
from prometheus_client.registry import Collector


class Family(msgspec.Struct, frozen=True):
    """A metric of Prometheus' client; `samples` are the name, labels and value of each."""

    name: str
    text: str
    kind: str
    samples: Sequence[tuple[str, dict[str, str], float]]


class EdgeReport(msgspec.Struct, frozen=True):
    """What the edge of this name counts."""

    edge: str
    families: Sequence[Family]

    @classmethod
    def of(cls, edge: str, figures: Collector) -> EdgeReport:
        """The report of the figures as they are now."""
        families = [
            Family(
                metric.name,
                metric.documentation,
                metric.type,
                [(sample.name, sample.labels, float(sample.value)) for sample in metric.samples],
            )
            for metric in figures.collect()
        ]
        return cls(edge, families)


class ClusterCollector(Collector):
    """What `ask` brings of each edge, with the label `edge`, after what all edges have `alike`.

    Edges are not added up: the sum of counters would fall when one leaves, which Prometheus takes
    for a restart of all.
    """

    def __init__(self, ask: Callable[[], Iterable[EdgeReport]], *alike: Collector) -> None:
        self._ask, self._alike = ask, alike

    def collect(self) -> Iterator[Metric]:
        """As Prometheus' client wants them."""
        # Before the others, which may be brought up to date by it.
        reports = self._ask()
        for collector in self._alike:
            yield from collector.collect()
        metrics: dict[str, Metric] = {}
        for report in reports:
            for family in report.families:
                if family.name not in metrics:
                    metrics[family.name] = Metric(family.name, family.text, family.kind)
                for name, labels, value in family.samples:
                    metrics[family.name].add_sample(name, {"edge": report.edge, **labels}, value)
        yield from metrics.values()
