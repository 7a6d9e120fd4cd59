"""Log-likelihoods of given tokens, batched through a running engine."""

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

# Requests in flight: enough to fill every batch, fewer than an engine's queue holds.
_IN_FLIGHT = 64


@dataclass(frozen=True)
class Target:
    """Tokens [context] that are given and tokens [n] that are scored after them."""

    context: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """Natural-log probability of all the tokens, and whether greedy decoding gives them.

    `truncated` counts tokens of the context that were dropped from its left to fit.
    """

    logprob: float
    greedy: bool
    truncated: int = 0


class Scorer:
    """Scores targets with one engine; `context_length` is in tokens."""

    def __init__(self, client: EngineClient, context_length: int) -> None:
        self._client = client
        # The engine generates one token after the prompt.
        self.longest = context_length - 1
        self._free = asyncio.Semaphore(_IN_FLIGHT)

    async def score(self, targets: Sequence[Target]) -> list[Score]:
        """The targets' scores, in order. Raises HaganeError for what the engine raises."""
        with Progress(transient=True) as progress:
            bar = progress.add_task("scoring", total=len(targets))

            async def one(target: Target) -> Score:
                async with self._free:
                    score = await self._score(target)
                progress.advance(bar)
                return score

            # A task group, so that one failure cancels the others.
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(one(target)) for target in targets]
            except* HaganeError as errors:
                raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _score(self, target: Target) -> Score:
        prompt = (*target.context, *target.tokens)
        kept = prompt[-self.longest :]
        sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, prompt_logprobs=1)
        request = GenerateRequest(request_id=uuid.uuid4().hex, prompt=kept, sampling=sampling)
        deltas: list[TokenDelta] = []
        async with aclosing(self._client.generate(request)) as stream:
            deltas += [delta async for delta in stream]
        entries = [e for delta in deltas for e in delta.prompt_logprobs or ()]
        scored = [e for e in entries[-len(target.tokens) :] if e is not None]
        return Score(
            sum(entry.logprob for entry in scored),
            all(entry.top[0][0] == entry.token for entry in scored),
            len(prompt) - len(kept),
        )


@asynccontextmanager
async def scorer(config: EngineConfig) -> AsyncGenerator[Scorer, None]:
    """A scorer with an engine of its own. Raises HaganeError if the engine cannot start."""
    client = EngineClient(config)
    await client.start()
    try:
        info = await client.ready()
        yield Scorer(client, info.context_length)
    finally:
        await client.stop(grace=5.0)
