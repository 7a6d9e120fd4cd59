"""Watches the arms of aliases, and promotes or withdraws candidates by the policy of the alias."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from hagane.evaluation.canary import ArmCounts, CanaryPolicy, Comparison, decide
from hagane.evaluation.sequential import discordant
from hagane.generation.events import Update
from hagane.generation.usage import Usage
from hagane.store.aliases import Aliases, AliasGeneration
from hagane.store.answers.answers import Answers
from hagane.store.answers.canaries import Canary, CanaryEvent, State
from hagane.store.answers.feedback import Feedback
from hagane.store.catalogue import ModelRef
from hagane.system.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    QueueFullError,
)
from hagane.system.loops import BackgroundLoop

logger = logging.getLogger(__name__)

_ROUND_SECONDS = 1.0
_LIKED = 0.5
_WEBHOOK_SECONDS = 10.0
_WEBHOOK_TRIES = 3
_STATES: dict[str, State] = {"promote": "promoted", "roll_back": "rolled_back"}


class CanaryWatch:
    """Counts what the arms of all aliases do; `loop` decides about those with a policy."""

    def __init__(self, aliases: Aliases, answers: Answers, registry: CollectorRegistry) -> None:
        self._aliases, self._answers = aliases, answers
        self._since: dict[tuple[str, str, str], ArmCounts] = defaultdict(ArmCounts)
        # Those that are yet to be announced.
        self._judged: list[Canary] = []
        self._hooks: set[asyncio.Task[None]] = set()
        self.loop = BackgroundLoop("canaries", self._round)
        labels = ["alias", "arm", "model"]
        self._requests = Counter(
            "hagane_arm_requests",
            "Requests to an alias, by the arm that answered and how that ended",
            [*labels, "outcome"],
            registry=registry,
        )
        self._seconds = Counter(
            "hagane_arm_seconds", "Seconds that answers took", labels, registry=registry
        )
        self._tokens = Counter(
            "hagane_arm_tokens", "Tokens that they generated", labels, registry=registry
        )

    async def watch(
        self, ref: ModelRef, usage: Usage, updates: AsyncGenerator[Update, None]
    ) -> AsyncGenerator[Update, None]:
        """`updates`, counted for the arm that answers; a request that is given up counts not."""
        started = time.monotonic()
        try:
            async with aclosing(updates):
                async for update in updates:
                    yield update
        except (InvalidRequestError, QueueFullError):
            # The fault of the request, or of the load on both arms.
            raise
        except Exception:
            self._count(ref, ArmCounts(requests=1, errors=1))
            raise
        seconds = time.monotonic() - started
        self._count(ref, ArmCounts(1, 0, seconds, usage.completion_tokens))

    def _count(self, ref: ModelRef, more: ArmCounts) -> None:
        alias, arm = ref.alias or "", ref.arm or ""
        self._since[alias, arm, ref.id].add(more)
        outcome = "failed" if more.errors else "succeeded"
        self._requests.labels(alias, arm, ref.id, outcome).inc()
        self._seconds.labels(alias, arm, ref.id).inc(more.seconds)
        self._tokens.labels(alias, arm, ref.id).inc(more.tokens)

    async def _round(self) -> float:
        """Judge every running canary by all that came until now."""
        since, self._since = self._since, defaultdict(ArmCounts)
        judging = asyncio.create_task(asyncio.to_thread(self._judge_all, since))
        try:
            await _end(judging)
        finally:
            # What was not judged by counts next time.
            for key, counts in since.items():
                self._since[key].add(counts)
        failed = judging.exception() or judging.result()
        while self._judged:
            await self._announce(self._judged[0])
            del self._judged[0]
        if failed is not None:
            raise failed
        return _ROUND_SECONDS

    def _judge_all(self, since: dict[tuple[str, str, str], ArmCounts]) -> Exception | None:
        """Judge by the counts `since`, taking out those that are kept; the last that failed.

        Of several servers one judges at a time, so that each adds its counts to the others'. What
        is judged stays so, also where the end of the turn is not heard.
        """
        failed: Exception | None = None
        again = set()
        with self._answers.database.attempt("canaries") as alone:
            if not alone:
                return None
            for canary in self._answers.canaries.running():
                try:
                    self._judge(canary, since)
                    self._judged.append(canary)
                except Exception as error:
                    # The others are judged all the same.
                    logger.exception("the canary of %s could not be judged", canary.alias)
                    failed = error
                    again.add(canary.alias)
        for key in [key for key in since if key[0] not in again]:
            del since[key]
        return failed

    def _judge(self, canary: Canary, since: dict[tuple[str, str, str], ArmCounts]) -> None:
        if not self._in_force(canary):
            self._answers.canaries.supersede(canary.alias)
            return
        seen = self._compare(canary, since)
        policy = CanaryPolicy.model_validate(canary.policy)
        verdict, reason = decide(policy, seen)
        counts = asdict(seen)
        if counts != canary.counts or reason != canary.reason:
            self._answers.canaries.record(canary.id, counts, reason)
        for arm, model in (("target", canary.target), ("candidate", canary.candidate)):
            # Kept now: a fault further down must not count it again.
            since.pop((canary.alias, arm, model), None)
        if verdict != "hold":
            self._act(canary, _STATES[verdict], reason, counts)
        elif policy.max_requests is not None and seen.candidate.requests >= policy.max_requests:
            event = CanaryEvent(f"Held undecided: {reason}", "warn", counts)
            self._answers.canaries.decide(canary.id, "held", reason, event)

    def _in_force(self, canary: Canary) -> bool:
        try:
            return self._aliases.get(canary.alias).generation == canary.generation
        except NotFoundError:
            return False

    def _compare(self, canary: Canary, since: dict[tuple[str, str, str], ArmCounts]) -> Comparison:
        arms = {}
        for arm, model in (("target", canary.target), ("candidate", canary.candidate)):
            arms[arm] = ArmCounts(**canary.counts.get(arm, {}))
            arms[arm].add(since.get((canary.alias, arm, model), ArmCounts()))
        feedback = self._answers.feedback.of_alias(canary.alias, canary.created_at)
        wins, losses = _wins(feedback, canary)
        return Comparison(arms["target"], arms["candidate"], wins, losses)

    def _act(self, canary: Canary, state: State, reason: str, counts: dict[str, object]) -> None:
        """Point the alias to the winner, unless somebody has changed it meanwhile."""
        winner = canary.candidate if state == "promoted" else canary.target
        wanted = AliasGeneration(canary.alias, winner)
        try:
            made = self._aliases.set(wanted, expected=canary.generation)
        except ConflictError:
            self._answers.canaries.supersede(canary.alias)
            return
        promoted = state == "promoted"
        words = "promoted" if promoted else "rolled back"
        message = f"{canary.candidate} is {words}: {reason}"
        data = {**counts, "generation": made.generation}
        logger.log(logging.INFO if promoted else logging.WARNING, "%s: %s", canary.alias, message)
        event = CanaryEvent(message, "info" if promoted else "warn", data)
        self._answers.canaries.decide(canary.id, state, reason, event)

    async def _announce(self, before: Canary) -> None:
        """Call the webhook of a canary that has just been decided."""
        now = await asyncio.to_thread(self._answers.canaries.latest, before.alias)
        url = before.policy.get("webhook")
        if now is None or now.id != before.id or now.state == "running" or url is None:
            return
        task = asyncio.create_task(self._call(url, now))
        self._hooks.add(task)
        task.add_done_callback(self._hooks.discard)

    async def _call(self, url: str, canary: Canary) -> None:
        # 4 MB that a server without webhooks does without.
        import httpx

        body = {"type": f"alias.{canary.state}", "data": {"object": "canary", **asdict(canary)}}
        error = ""
        async with httpx.AsyncClient(timeout=_WEBHOOK_SECONDS) as client:
            for attempt in range(_WEBHOOK_TRIES):
                try:
                    (await client.post(url, json=body)).raise_for_status()
                except (httpx.HTTPError, httpx.InvalidURL) as failure:
                    error = str(failure) or type(failure).__name__
                    await asyncio.sleep(2.0**attempt)
                else:
                    return
        event = CanaryEvent(f"The webhook could not be called: {error}", "warn")
        await asyncio.to_thread(self._answers.canaries.note, canary.id, event)

    async def stop(self) -> None:
        """End; webhooks under way are given up."""
        await self.loop.stop()
        for task in self._hooks:
            task.cancel()
        await asyncio.gather(*self._hooks, return_exceptions=True)


async def _end(task: asyncio.Task[Any]) -> None:
    """Wait for the end of what runs in a thread, which no cancellation ends; then be cancelled."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def _wins(feedback: Sequence[Feedback], canary: Canary) -> tuple[int, int]:
    """(wins, losses) of the candidate: preferences between the arms, and pairs of judgements."""
    wins = losses = 0
    judged: dict[str, list[bool]] = {"target": [], "candidate": []}
    models = {"target": canary.target, "candidate": canary.candidate}
    for given in feedback:
        arm = given.arm or ""
        if arm not in judged or given.model != models[arm]:
            continue
        if given.preferred_over is not None:
            if given.preferred_over_arm not in (None, arm):
                wins += arm == "candidate"
                losses += arm == "target"
        elif given.thumbs is not None:
            judged[arm].append(given.thumbs == "up")
        elif given.score is not None:
            judged[arm].append(given.score >= _LIKED)
        elif given.correction is not None:
            judged[arm].append(False)
    more_wins, more_losses = discordant(judged["candidate"], judged["target"])
    return wins + more_wins, losses + more_losses
