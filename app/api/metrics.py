"""What Prometheus sees: histograms of the requests, gauges of the engine."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram
from prometheus_client import generate_latest as render
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app import __version__
from app.engine.client import EngineClient

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)


class _EngineCollector(Collector):
    """Reads the engine's latest statistics when Prometheus asks."""

    def __init__(self, client: EngineClient) -> None:
        self.client = client

    def collect(self) -> Iterator[Metric]:
        stats = self.client.stats
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
            "engine_ready": ("1 when the engine takes requests", self.client.state == "ready"),
        }
        counters = {
            "prefix_cache_queried_tokens": ("Prompt tokens looked up", stats.prefix_tokens_queried),
            "prefix_cache_hit_tokens": ("Prompt tokens found", stats.prefix_tokens_hit),
            "preemptions": ("Sequences preempted", stats.preemptions),
            "engine_steps": ("Forward passes", stats.steps),
            "engine_restarts": ("Times the engine was restarted", self.client.restarts),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"hagane_{name}", text, value=float(value))
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"hagane_{name}", text, value=float(value))
        build = GaugeMetricFamily("hagane_build_info", "Version", labels=["version"])
        build.add_metric([__version__], 1)
        yield build


class Metrics:
    """The registry of one application."""

    def __init__(self, client: EngineClient) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(client))

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
        self.generated_tokens = Counter(
            "hagane_generated_tokens", "Tokens generated", registry=self.registry
        )
        self.http_requests = Counter(
            "hagane_http_requests",
            "HTTP requests",
            ["method", "route", "status"],
            registry=self.registry,
        )


router = APIRouter()


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """All metrics in Prometheus' text format."""
    return Response(render(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)
