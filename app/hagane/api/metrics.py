"""What Prometheus sees: histograms of the requests, gauges of the engine."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from types import MappingProxyType

from fastapi import Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram
from prometheus_client import generate_latest as render
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hagane import __version__
from hagane.api.access import guarded_router
from hagane.pool.client import EngineClient
from hagane.pool.models import Fleet
from hagane.store.jobs import Jobs
from hagane.system.logging import dropped_lines

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)

_RATE_SECONDS = 5.0


class _EngineCollector(Collector):
    """Reads the engine's latest statistics when Prometheus asks."""

    def __init__(self, client: EngineClient) -> None:
        self.client = client

    def collect(self) -> Iterator[Metric]:
        stats = self.client.stats
        adapters = stats.adapters
        gauges = {
            "requests_running": ("Sequences being generated", stats.running),
            "requests_waiting": ("Requests waiting for room", stats.waiting),
            "kv_cache_blocks_used": ("KV-cache blocks in use", stats.blocks_used),
            "kv_cache_blocks_cached": ("Free blocks kept for prefix hits", stats.blocks_cached),
            "kv_cache_blocks_total": ("KV-cache blocks", stats.blocks_total),
            "kv_cache_usage_ratio": (
                "Part of the KV cache in use",
                stats.blocks_used / max(stats.blocks_total, 1),
            ),
            "adapters_loaded": ("LoRA adapters in memory", adapters.loaded),
            "adapter_bytes": ("Memory of the LoRA adapters", adapters.nbytes),
            "adapter_requests_waiting": ("Requests waiting for their adapter", adapters.requests),
            "engine_ready": ("1 when the engine takes requests", self.client.state == "ready"),
        }
        counters = {
            "prefix_cache_queried_tokens": ("Prompt tokens looked up", stats.prefix_tokens_queried),
            "prefix_cache_hit_tokens": ("Prompt tokens found", stats.prefix_tokens_hit),
            "preemptions": ("Sequences preempted", stats.preemptions),
            "adapter_loads": ("LoRA adapters loaded", adapters.loads),
            "adapter_evictions": ("LoRA adapters evicted for others", adapters.evictions),
            "engine_steps": ("Forward passes", stats.steps),
            "engine_restarts": ("Times the engine was restarted", self.client.restarts),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"hagane_{name}", text, value=float(value))
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"hagane_{name}", text, value=float(value))
        yield CounterMetricFamily(
            "hagane_log_lines_dropped",
            "Lines of the log that could not be written",
            value=float(dropped_lines()),
        )
        build = GaugeMetricFamily("hagane_build_info", "Version", labels=["version"])
        build.add_metric([__version__], 1)
        yield build


class _ResidentCollector(Collector):
    """The engines of whole models beside the base, as long as they are in memory."""

    _GAUGES = MappingProxyType(
        {
            "ready": "1 when its engine takes requests",
            "engine_restarts": "Times its engine was restarted",
            "requests_running": "Sequences being generated",
            "requests_waiting": "Requests waiting for room",
            "kv_cache_blocks_used": "KV-cache blocks in use",
            "kv_cache_blocks_total": "KV-cache blocks",
        }
    )

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def collect(self) -> Iterator[Metric]:
        residents = self.fleet.residents
        yield GaugeMetricFamily(
            "hagane_resident_models", "Whole models in memory beside the base", len(residents)
        )
        gauges = {
            name: GaugeMetricFamily(f"hagane_resident_model_{name}", text, labels=["model"])
            for name, text in self._GAUGES.items()
        }
        for resident in residents:
            client = resident.client
            values = (
                client.state == "ready",
                client.restarts,
                client.stats.running,
                client.stats.waiting,
                client.stats.blocks_used,
                client.stats.blocks_total,
            )
            for gauge, value in zip(gauges.values(), values, strict=True):
                gauge.add_metric([resident.name], float(value))
        yield from gauges.values()


class _JobCollector(Collector):
    """Reads the last report of the fine-tuning job that runs; without one, its gauges are absent.

    Names end in the unit, as in `StepReport`.
    """

    _GAUGES = MappingProxyType(
        {
            "step": "Steps done",
            "steps": "Steps in all",
            "train_loss": "Loss of the last step",
            "valid_loss": "Last validation loss",
            "learning_rate": "Learning rate",
            "tokens_per_second": "Tokens trained on per second",
            "memory_bytes": "Peak memory of the worker",
            "eta_seconds": "Time until the end",
        }
    )

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs

    def collect(self) -> Iterator[Metric]:
        job = self.jobs.first("running")
        running = GaugeMetricFamily("hagane_fine_tuning_jobs_running", "1 while a job runs")
        running.add_metric([], job is not None)
        yield running
        progress = (job and job.progress) or {}
        for name, text in self._GAUGES.items():
            if (value := progress.get(name)) is not None and job is not None:
                gauge = GaugeMetricFamily(f"hagane_fine_tuning_{name}", text, labels=["job"])
                gauge.add_metric([job.id], value)
                yield gauge


class Metrics:
    """The registry of one application."""

    def __init__(self, fleet: Fleet, jobs: Jobs) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(fleet.base))
        self.registry.register(_ResidentCollector(fleet))
        self.registry.register(_JobCollector(jobs))

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"hagane_{name}", text, registry=self.registry, buckets=buckets)

        self.time_to_first_token = histogram(
            "time_to_first_token_seconds", "From request to first token"
        )
        self.inter_token_latency = histogram(
            "inter_token_latency_seconds", "Between tokens of a stream", _TOKEN_SECONDS
        )
        self.end_to_end_latency = histogram(
            "end_to_end_latency_seconds", "From request to last token"
        )
        self.queue_time = histogram("queue_time_seconds", "From request to its first step")
        self.prompt_tokens = Counter(
            "hagane_prompt_tokens", "Prompt tokens received", registry=self.registry
        )
        self.adapter_requests = Counter(
            "hagane_adapter_requests",
            "Requests by the adapter that answers",
            ["adapter"],
            registry=self.registry,
        )
        self.generated_tokens = Counter(
            "hagane_generated_tokens", "Tokens generated", registry=self.registry
        )
        self.http_requests = Counter(
            "hagane_http_requests",
            "HTTP requests",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._samples: deque[tuple[float, float]] = deque()

    def tokens_per_second(self) -> float:
        """Tokens generated, by the calls of this in the last seconds, or since the last one."""
        now = time.monotonic()
        total = next(iter(self.generated_tokens.collect())).samples[0].value
        while len(self._samples) > 1 and self._samples[1][0] < now - _RATE_SECONDS:
            self._samples.popleft()
        since, before = self._samples[0] if self._samples else (now, total)
        self._samples.append((now, total))
        return (total - before) / (now - since) if now > since else 0.0


router = guarded_router()


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request) -> Response:
    """All metrics in Prometheus' text format."""
    return Response(render(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)
