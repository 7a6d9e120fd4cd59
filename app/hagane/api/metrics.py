"""Metrics for Prometheus: histograms of the requests, gauges of the engine."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from types import MappingProxyType
from typing import get_args

from fastapi import Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram
from prometheus_client import generate_latest as render
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hagane import __version__
from hagane.api.access import guarded_router
from hagane.pool.client import EngineClient
from hagane.pool.messages import EngineStats
from hagane.pool.models import Fleet, ResidentModel
from hagane.pool.process import EndReason
from hagane.store.jobs import Jobs
from hagane.system.errors import StoreUnavailableError
from hagane.system.logging import dropped_lines
from hagane.system.loops import BackgroundLoop

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)

_RATE_SECONDS = 5.0


class _EngineCollector(Collector):
    """Reads the latest statistics of each model's engine at each scrape by Prometheus."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def collect(self) -> Iterator[Metric]:
        residents = self.fleet.residents
        yield from _by_model((one.name, engine_figures(one.client.stats)) for one in residents)
        yield from _guesses(residents)


class _ServerCollector(Collector):
    """What this server sees of its engines and of itself."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def collect(self) -> Iterator[Metric]:
        residents = self.fleet.residents
        yield from _by_model((one.name, _availability(one.client)) for one in residents)
        yield _crashes(residents)
        yield GaugeMetricFamily(
            "hagane_resident_models",
            "Models in memory besides the base",
            sum(not resident.base for resident in residents),
        )
        yield CounterMetricFamily(
            "hagane_log_lines_dropped",
            "Lines of the log that could not be written",
            value=float(dropped_lines()),
        )
        build = GaugeMetricFamily("hagane_build_info", "Version", labels=["version"])
        build.add_metric([__version__], 1)
        yield build


# Kind, description and value of a metric, by its name.
Figures = dict[str, tuple[type[GaugeMetricFamily] | type[CounterMetricFamily], str, float]]


def _by_model(figures: Iterable[tuple[str, Figures]]) -> Iterator[Metric]:
    """The families of what each model has."""
    families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
    for model, named in figures:
        for name, (kind, text, value) in named.items():
            if name not in families:
                families[name] = kind(f"hagane_{name}", text, labels=["model"])
            families[name].add_metric([model], float(value))
    yield from families.values()


def _availability(client: EngineClient) -> Figures:
    ready = "1 when the engine takes requests"
    return {
        "engine_ready": (GaugeMetricFamily, ready, client.state == "ready"),
        "engine_restarts": (CounterMetricFamily, "Times the engine was restarted", client.restarts),
    }


def engine_figures(stats: EngineStats) -> Figures:
    """All that an engine reports of itself."""
    adapters, tiers = stats.adapters, stats.tiers
    usage = stats.blocks_used / max(stats.blocks_total, 1)
    gauges = {
        "requests_running": ("Sequences being generated", stats.running),
        "requests_waiting": ("Requests waiting for room", stats.waiting),
        "kv_cache_blocks_used": ("KV-cache blocks in use", stats.blocks_used),
        "kv_cache_blocks_cached": ("Free blocks kept for prefix hits", stats.blocks_cached),
        "kv_cache_blocks_total": ("KV-cache blocks", stats.blocks_total),
        "kv_cache_usage_ratio": ("Part of the KV cache in use", usage),
        "kv_host_blocks": ("KV-cache blocks in host memory", tiers.host_blocks),
        "kv_disk_blocks": ("KV-cache blocks on disk", tiers.disk_blocks),
        "adapters_loaded": ("LoRA adapters in memory", adapters.loaded),
        "adapter_bytes": ("Memory of the LoRA adapters", adapters.nbytes),
        "adapter_requests_waiting": (
            "Requests waiting for their adapter or grammar",
            adapters.requests,
        ),
    }
    counters = {
        "prefix_cache_queried_tokens": ("Prompt tokens looked up", stats.prefix_tokens_queried),
        "prefix_cache_hit_tokens": ("Prompt tokens found", stats.prefix_tokens_hit),
        "kv_blocks_restored": ("KV-cache blocks back from host memory", tiers.restored),
        "kv_blocks_loaded": ("KV-cache blocks read from disk", tiers.loaded),
        "kv_blocks_written": ("KV-cache blocks written to disk", tiers.written),
        "kv_blocks_dropped": ("KV-cache blocks that could not be saved", tiers.dropped),
        "kv_blocks_lost": ("KV-cache blocks on disk that were damaged or gone", tiers.lost),
        "preemptions": ("Sequences preempted", stats.preemptions),
        "adapter_loads": ("LoRA adapters loaded", adapters.loads),
        "adapter_evictions": ("LoRA adapters evicted for others", adapters.evictions),
        "engine_steps": ("Forward passes", stats.steps),
    }
    return {name: (GaugeMetricFamily, *rest) for name, rest in gauges.items()} | {
        name: (CounterMetricFamily, *rest) for name, rest in counters.items()
    }


def _guesses(residents: Iterable[ResidentModel]) -> Iterator[Metric]:
    labels = ["model", "proposer"]
    proposed = CounterMetricFamily(
        "hagane_speculation_proposed_tokens", "Tokens guessed and verified", labels=labels
    )
    accepted = CounterMetricFamily(
        "hagane_speculation_accepted_tokens", "Guessed tokens that were right", labels=labels
    )
    for resident in residents:
        stats = resident.client.stats
        for proposer, counts in (("lookup", stats.lookup), ("draft", stats.draft)):
            proposed.add_metric([resident.name, proposer], counts.proposed)
            accepted.add_metric([resident.name, proposer], counts.accepted)
    yield proposed
    yield accepted


def _crashes(residents: Iterable[ResidentModel]) -> Metric:
    family = CounterMetricFamily(
        "hagane_engine_crashes",
        "Unexpected ends of the engine process, by reason",
        labels=["model", "reason"],
    )
    for resident in residents:
        for reason in get_args(EndReason):
            count = resident.client.crashes.counts[reason]
            family.add_metric([resident.name, reason], count)
    return family


class _LoopCollector(Collector):
    """State of the background loops: whether each goes on, and how often it failed."""

    def __init__(self, loops: Callable[[], Iterable[BackgroundLoop]]) -> None:
        self.loops = loops

    def collect(self) -> Iterator[Metric]:
        failing = GaugeMetricFamily(
            "hagane_background_loop_failing", "1 while a background loop fails", labels=["loop"]
        )
        failures = CounterMetricFamily(
            "hagane_background_loop_failures", "Rounds of it that failed", labels=["loop"]
        )
        by_name: dict[str, list[BackgroundLoop]] = defaultdict(list)
        for loop in self.loops():
            by_name[loop.name].append(loop)
        for name, loops in by_name.items():
            failing.add_metric([name], any(loop.failing for loop in loops))
            failures.add_metric([name], sum(loop.failures for loop in loops))
        yield failing
        yield failures


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
        try:
            job = self.jobs.first("running")
        except StoreUnavailableError:
            return
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
    """The metrics of one application.

    Attributes:
        own: what this server counts and sees, of which others have figures of their own.
        shared: what servers with the same engines and the same store all read alike.
        exposed: what Prometheus gets; a cluster puts more there.
    """

    def __init__(
        self, fleet: Fleet, jobs: Jobs, loops: Callable[[], Iterable[BackgroundLoop]]
    ) -> None:
        self.own, self.shared = CollectorRegistry(), CollectorRegistry()
        self.shared.register(_EngineCollector(fleet))
        self.shared.register(_JobCollector(jobs))
        self.own.register(_ServerCollector(fleet))
        self.own.register(_LoopCollector(loops))
        everything = CollectorRegistry()
        everything.register(self.shared)
        everything.register(self.own)
        self.exposed: Collector = everything

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"hagane_{name}", text, registry=self.own, buckets=buckets)

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
            "hagane_prompt_tokens", "Prompt tokens received", registry=self.own
        )
        self.adapter_requests = Counter(
            "hagane_adapter_requests",
            "Requests by the adapter that answers",
            ["adapter"],
            registry=self.own,
        )
        self.generated_tokens = Counter(
            "hagane_generated_tokens", "Tokens generated", registry=self.own
        )
        self.http_requests = Counter(
            "hagane_http_requests",
            "HTTP requests",
            ["method", "route", "status"],
            registry=self.own,
        )
        self.feedback = Counter(
            "hagane_feedback",
            "Judgements of answers, by what they say and by the model and arm that answered",
            ["kind", "model", "alias", "arm"],
            registry=self.own,
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
    return Response(render(request.app.state.metrics.exposed), media_type=CONTENT_TYPE_LATEST)
