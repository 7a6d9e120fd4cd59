"""What the server did in the last minutes and hours, in memory, for administration's charts."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from prometheus_client.metrics import MetricWrapperBase

from hagane.api.metrics import Metrics
from hagane.pool.client import EngineClient
from hagane.system.loops import BackgroundLoop
from hagane.system.machine import available_memory

Period = Literal["15m", "24h"]

_SAMPLING_SECONDS = 5.0
_DAY_STEP_SECONDS = 60.0


@dataclass(frozen=True)
class Sample:
    """The load over the `seconds` that ended at `at` (Unix seconds), and its state then.

    Latencies are means in seconds of the requests that ended in it, None where none did.
    `available_bytes` is memory, `free_bytes` disk.
    """

    at: float
    seconds: float
    requests: int
    prompt_tokens: int
    generated_tokens: int
    first_token_seconds: float | None
    request_seconds: float | None
    running: int
    waiting: int
    cache_ratio: float
    available_bytes: int
    free_bytes: int | None


@dataclass
class _Track:
    """Samples at one distance, the oldest of which give way."""

    step: float
    samples: deque[Sample]
    before: dict[str, float] = field(default_factory=dict)
    due: float = 0.0


class LoadHistory:
    """Samples of one server: every 5 seconds for 15 minutes, every minute for a day."""

    def __init__(self, client: EngineClient, metrics: Metrics, disk: Path | None) -> None:
        self._client, self._metrics, self._disk = client, metrics, disk
        self._tracks: dict[Period, _Track] = {
            "15m": _Track(_SAMPLING_SECONDS, deque(maxlen=180)),
            "24h": _Track(_DAY_STEP_SECONDS, deque(maxlen=1440)),
        }
        self.loop = BackgroundLoop("load history", self._round)

    def list(self, period: Period) -> list[dict[str, Any]]:
        """The samples of a period, oldest first."""
        return [asdict(sample) for sample in self._tracks[period].samples]

    async def _round(self) -> float:
        free = None
        if self._disk is not None:
            # A disk over the network may keep it waiting.
            free = (await asyncio.to_thread(shutil.disk_usage, self._disk)).free
        self.sample(time.time(), free)
        return _SAMPLING_SECONDS

    def sample(self, now: float, free: int | None) -> None:
        """Take the samples that are due at `now`; the first only begins to count."""
        totals = self._totals()
        for track in self._tracks.values():
            if now < track.due - _SAMPLING_SECONDS / 2:
                continue
            if track.before:
                track.samples.append(self._between(track.before, totals, now, free))
            track.before, track.due = {**totals, "at": now}, now + track.step

    def _totals(self) -> dict[str, float]:
        metrics = self._metrics
        first, whole = metrics.time_to_first_token, metrics.end_to_end_latency
        return {
            "prompt_tokens": _total(metrics.prompt_tokens, "_total"),
            "generated_tokens": _total(metrics.generated_tokens, "_total"),
            "first_count": _total(first, "_count"),
            "first_sum": _total(first, "_sum"),
            "requests": _total(whole, "_count"),
            "request_sum": _total(whole, "_sum"),
        }

    def _between(
        self, before: dict[str, float], totals: dict[str, float], now: float, free: int | None
    ) -> Sample:
        new = {name: total - before[name] for name, total in totals.items()}
        stats = self._client.stats
        return Sample(
            at=now,
            seconds=now - before["at"],
            requests=int(new["requests"]),
            prompt_tokens=int(new["prompt_tokens"]),
            generated_tokens=int(new["generated_tokens"]),
            first_token_seconds=_mean(new["first_sum"], new["first_count"]),
            request_seconds=_mean(new["request_sum"], new["requests"]),
            running=stats.running,
            waiting=stats.waiting,
            cache_ratio=stats.blocks_used / max(stats.blocks_total, 1),
            available_bytes=available_memory(),
            free_bytes=free,
        )


def _total(metric: MetricWrapperBase, ending: str) -> float:
    """The one sample of a metric without labels whose name ends so."""
    samples = next(iter(metric.collect())).samples
    return next(sample.value for sample in samples if sample.name.endswith(ending))


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None
