"""Compute log-likelihoods of given tokens, batched through an engine."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from rich.progress import Progress

from hagane.pool.client import EngineClient
from hagane.pool.messages import EngineConfig, GenerateRequest, SamplingParams, TokenDelta
from hagane.system.errors import HaganeError

# Requests in flight: enough to fill every batch, but fewer than an engine's queue holds.
_IN_FLIGHT = 64


@dataclass(frozen=True)
class ScoredContinuation:
    """`tokens` [n] to score after `context` [any length]."""

    context: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """The tokens' joint log-probability in nats, and whether greedy decoding generates them.

    `truncated` counts tokens dropped from the left of the context to fit the model.
    """

    logprob: float
    greedy: bool
    truncated: int = 0


class Scorer:
    """Scores continuations with one engine; `context_length` is in tokens."""

    def __init__(self, client: EngineClient, context_length: int) -> None:
        self._client = client
        # The engine generates one token after the prompt.
        self.longest = context_length - 1
        self._free = asyncio.Semaphore(_IN_FLIGHT)

    async def score(self, continuations: Sequence[ScoredContinuation]) -> list[Score]:
        """Scores in the order of `continuations`. Raises the engine's HaganeError."""
        with Progress(transient=True) as progress:
            bar = progress.add_task("scoring", total=len(continuations))

            async def one(continuation: ScoredContinuation) -> Score:
                async with self._free:
                    score = await self._score(continuation)
                progress.advance(bar)
                return score

            # A task group, so that one failure cancels the others.
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(one(continuation)) for continuation in continuations]
            except* HaganeError as errors:
                raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _score(self, continuation: ScoredContinuation) -> Score:
        prompt = (*continuation.context, *continuation.tokens)
        kept = prompt[-self.longest :]
        sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, prompt_logprobs=1)
        request = GenerateRequest(request_id=uuid.uuid4().hex, prompt=kept, sampling=sampling)
        deltas: list[TokenDelta] = []
        async with aclosing(self._client.generate(request)) as stream:
            deltas += [delta async for delta in stream]
        entries = [e for delta in deltas for e in delta.prompt_logprobs or ()]
        scored = [e for e in entries[-len(continuation.tokens) :] if e is not None]
        return Score(
            sum(entry.logprob for entry in scored),
            all(entry.top[0][0] == entry.token for entry in scored),
            len(prompt) - len(kept),
        )


@asynccontextmanager
async def scorer(config: EngineConfig) -> AsyncGenerator[Scorer, None]:
    """Start an engine and a scorer for it. Raises HaganeError if the engine cannot start."""
    client = EngineClient(config)
    await client.start()
    try:
        info = await client.ready()
        yield Scorer(client, info.context_length)
    finally:
        await client.stop(grace=5.0)
