"""The allowance of each API key, per minute and at a time, and its use.

The headers are OpenAI's: https://platform.openai.com/docs/guides/rate-limits
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from prometheus_client import CollectorRegistry, Counter, Gauge

from hagane.api.errors import PermissionDeniedError
from hagane.store.keys import KeyLimits, KeyUse, key_label
from hagane.system.errors import RateLimitError
from hagane.system.settings import Settings

ANONYMOUS = "anonymous"
_MINUTE = 60.0
# A refusal because of concurrency has no moment at which it ends; clients shall not spin.
_RETRY_SECONDS = 1.0


class Bucket:
    """An allowance of `capacity` a minute that refills evenly.

    It may be overdrawn, since what a request will use is not known before it has run; the debt
    delays the next one.
    """

    def __init__(self, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.capacity = capacity
        self._clock = clock
        self._level = float(capacity)
        self._updated = clock()

    @property
    def level(self) -> float:
        """The remaining allowance; negative when overdrawn."""
        now = self._clock()
        refill = (now - self._updated) * self.capacity / _MINUTE
        self._level = min(self._level + refill, float(self.capacity))
        self._updated = now
        return self._level

    def take(self, amount: float) -> None:
        self._level = self.level - amount

    def seconds_until(self, level: float) -> float:
        """Time until `level` is there, 0 if it is."""
        return max(level - self.level, 0.0) * _MINUTE / self.capacity


class KeyUsage:
    """Counters of what every key has used; `days` are those to be stored, by label and day."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "hagane_key_requests", "Requests of a key", ["key", "outcome"], registry=registry
        )
        self.tokens = Counter(
            "hagane_key_tokens", "Tokens of a key", ["key", "kind"], registry=registry
        )
        self.running = Gauge(
            "hagane_key_requests_running", "Requests of a key now", ["key"], registry=registry
        )
        self._days: defaultdict[tuple[str, str], KeyUse] = defaultdict(KeyUse)

    def request(self, label: str, *, admitted: bool) -> None:
        """Count one request."""
        self.requests.labels(label, "admitted" if admitted else "refused").inc()
        today = self._today(label)
        if admitted:
            today.requests += 1
        else:
            today.refused += 1

    def charge(self, label: str, kind: str, tokens: int) -> None:
        """Count tokens that were read (`prompt`) or made (`generated`)."""
        self.tokens.labels(label, kind).inc(tokens)
        today = self._today(label)
        if kind == "prompt":
            today.prompt_tokens += tokens
        else:
            today.generated_tokens += tokens

    def take_days(self) -> dict[tuple[str, str], KeyUse]:
        """What was used since the last call."""
        days, self._days = dict(self._days), defaultdict(KeyUse)
        return days

    def put_back(self, days: dict[tuple[str, str], KeyUse]) -> None:
        """Keep for the next call what could not be stored."""
        for place, use in days.items():
            today = self._days[place]
            for name, count in vars(use).items():
                setattr(today, name, getattr(today, name) + count)

    def _today(self, label: str) -> KeyUse:
        return self._days[label, time.strftime("%Y-%m-%d", time.gmtime())]


class Account:
    """One API key: what is left to it, and what it uses.

    A request is admitted while both allowances have at least one left; its tokens are deducted as
    they come, the prompt's first.
    """

    def __init__(
        self,
        label: str,
        usage: KeyUsage,
        limits: KeyLimits,
        clock: Callable[[], float] = time.monotonic,
        *,
        urgent: bool = True,
    ) -> None:
        self.label = label
        self._usage = usage
        self._running = 0
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}
        self.limit(limits, urgent=urgent)

    def limit(self, limits: KeyLimits, *, urgent: bool) -> None:
        """Change what the key may use; an allowance that stays keeps its level."""
        self._urgent = urgent
        self._most_running = limits.concurrent
        wanted = {"requests": limits.requests, "tokens": limits.tokens}
        before, self._buckets = self._buckets, {}
        for name, capacity in wanted.items():
            if capacity is None:
                continue
            same = name in before and before[name].capacity == capacity
            self._buckets[name] = before[name] if same else Bucket(capacity, self._clock)

    @contextmanager
    def request(self) -> Iterator[Account]:
        """The time of one request. Raises RateLimitError if it has to wait."""
        try:
            self._check()
        except RateLimitError:
            self._usage.request(self.label, admitted=False)
            raise
        if (requests := self._buckets.get("requests")) is not None:
            requests.take(1)
        self._usage.request(self.label, admitted=True)
        self._count(1)
        try:
            yield self
        finally:
            self._count(-1)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """The time of work that goes on when its request, already admitted, has been answered."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def check_priority(self, priority: int) -> None:
        """Raises PermissionDeniedError for going before others (below 0) without leave to."""
        if priority < 0 and not self._urgent:
            raise PermissionDeniedError(
                f"'priority' is {priority}: going before others is for the admin key and those in "
                "priority_keys. Leave it out, or send 0 or more, which lets others go first."
            )

    def charge(self, kind: str, tokens: int) -> None:
        """Deduct tokens that were read (`prompt`) or made (`generated`)."""
        self._usage.charge(self.label, kind, tokens)
        if (bucket := self._buckets.get("tokens")) is not None:
            bucket.take(tokens)

    def spares(self, own: int) -> bool:
        """Whether a batch with `own` requests may begin another, and leave others what they need.

        That is one request at a time, and half of what is allowed a minute.
        """
        if any(bucket.level < max(1, bucket.capacity / 2) for bucket in self._buckets.values()):
            return False
        running = max(self._running, own)
        return self._most_running is None or running < max(1, self._most_running - 1)

    def headers(self) -> dict[str, str]:
        """OpenAI's x-ratelimit-* headers for the limits that are set."""
        headers = {}
        for name, bucket in self._buckets.items():
            headers[f"x-ratelimit-limit-{name}"] = str(bucket.capacity)
            headers[f"x-ratelimit-remaining-{name}"] = str(max(int(bucket.level), 0))
            full = bucket.seconds_until(bucket.capacity)
            headers[f"x-ratelimit-reset-{name}"] = _duration(full)
        return headers

    def _check(self) -> None:
        for name, bucket in self._buckets.items():
            wait = bucket.seconds_until(1)
            if wait > 0:
                raise RateLimitError(
                    f"Rate limit reached for {name} per minute (rate_limit_{name}): the limit is "
                    f"{bucket.capacity}. Try again in {_duration(wait)}.",
                    retry_after=wait,
                )
        if self._most_running is not None and self._running >= self._most_running:
            raise RateLimitError(
                f"{self._running} requests of this key are running, as many as it may have at a "
                "time (max_concurrent_requests). Try again when one has finished.",
                retry_after=_RETRY_SECONDS,
            )

    def _count(self, change: int) -> None:
        self._running += change
        self._usage.running.labels(self.label).set(self._running)


class Accounts:
    """The accounts of all keys, the admin's among them, and one for who needs none."""

    def __init__(self, settings: Settings, registry: CollectorRegistry) -> None:
        self.usage = KeyUsage(registry)
        self._limits = KeyLimits(
            settings.rate_limit_requests,
            settings.rate_limit_tokens,
            settings.max_concurrent_requests,
        )
        self._accounts: dict[str, Account] = {}
        admin = settings.admin_key.get_secret_value()
        urgent = {key_label(key) for key in (*settings.urgent_keys, admin) if key}
        for label in {key_label(key) for key in settings.keys} | urgent:
            self.put(label, KeyLimits(), urgent=label in urgent)
        # Where no keys are required, everybody is trusted alike.
        self.put(ANONYMOUS, KeyLimits(), urgent=True)

    def put(self, label: str, limits: KeyLimits, *, urgent: bool) -> None:
        """Open an account, or change one; limits that are None are those of the settings."""
        own = {name: limit for name, limit in vars(limits).items() if limit is not None}
        effective = replace(self._limits, **own)
        if (account := self._accounts.get(label)) is not None:
            account.limit(effective, urgent=urgent)
        else:
            self._accounts[label] = Account(label, self.usage, effective, urgent=urgent)

    def __getitem__(self, label: str) -> Account:
        return self._accounts[label]


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 17ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{int(rest)}s" if minutes else f"{rest:.3g}s"
