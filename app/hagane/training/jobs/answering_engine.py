"""An engine alongside a run, which answers with the adapter of the step, or as a teacher.

It is the serving engine in a process of its own: continuous batching, prefix cache, and adapters
put in place between two of its steps. An event loop in a thread of its own talks to it, so that it
is looked after while this process computes gradients.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from hagane.pool.client import EngineClient
from hagane.pool.messages import (
    AdapterRef,
    EngineConfig,
    GenerateRequest,
    SamplingParams,
    TokenDelta,
    TokenLogprobs,
)
from hagane.system.errors import EngineCrashedError, EngineUnavailableError
from hagane.training.finetune.spec import FineTuneSpec
from hagane.training.jobs.estimates import ANSWERING_CACHE

_Result = TypeVar("_Result")

_MOST_TRIES = 3
_STOP_SECONDS = 5.0
_MOST_ADAPTERS = 4
_SEQUENCES, _STEP_TOKENS = 64, 512


@dataclass(frozen=True)
class SeededPrompt:
    """Tokens to continue, `count` times, by a seed that decides every draw."""

    tokens: tuple[int, ...]
    count: int
    seed: int


@dataclass(frozen=True)
class SampledAnswer:
    """Generated tokens [n] with their log-probabilities [n] in nats at temperature 1.

    `prompt_scores` are those of the prompt, None for its first token, if they were asked for.
    `ended` means that the last one ends the answer and is no part of its text; otherwise it was
    cut at the most tokens allowed.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: bool
    prompt_scores: tuple[TokenLogprobs | None, ...] = ()

    @property
    def text_tokens(self) -> tuple[int, ...]:
        """Tokens of the text."""
        return self.tokens[:-1] if self.ended else self.tokens


def answering_config(
    spec: FineTuneSpec, model: Path, longest: int, *, adapter_bytes: int = 0, dtype: str = "auto"
) -> EngineConfig:
    """The engine that answers by `model` for a run; it computes on what the run computes on.

    `longest` is the most tokens of a prompt with its answer.
    """
    return EngineConfig(
        model=str(model),
        device=spec.device,
        dtype=dtype,
        quantize=spec.quantize,
        # That of `Quantization.choose`, by which the run's own base is quantized.
        group_size=32,
        block_size=16,
        context_length=longest + 1,
        kv_cache_memory=None,
        kv_cache_limit=ANSWERING_CACHE,
        # As in training: quantized keys would answer by other probabilities.
        kv_cache_dtype="model",
        shares_device=True,
        max_batch_tokens=_STEP_TOKENS,
        max_sequences=_SEQUENCES,
        max_waiting=1 << 20,
        prefix_caching=True,
        threads=spec.threads,
        adapter_memory=_MOST_ADAPTERS * adapter_bytes + (64 << 20),
    )


class AnsweringEngine:
    """The engine of a run, alive inside its `with` block; methods are for the run's own thread.

    It starts while the run reads its own model; `ready` waits for it.

    with AnsweringEngine(answering_config(spec, spec.model, longest=512)) as engine:
        answers = engine.run(engine.answer(prompt, adapter, sampling))
    """

    def __init__(self, config: EngineConfig) -> None:
        self._client = EngineClient(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self.run(self._client.start())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def ready(self) -> None:
        """Wait until it answers. Raises HaganeError with the reason where it cannot start."""
        self.run(self._client.ready())

    def run(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        """Wait for a coroutine on the engine's event loop. Raises what it raises."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def answer(
        self, prompt: SeededPrompt, adapter: AdapterRef | None, sampling: SamplingParams
    ) -> list[SampledAnswer]:
        """All answers to a prompt. An engine that dies meanwhile is asked again, to the same end.

        Raises HaganeError.
        """
        for attempt in range(_MOST_TRIES):
            try:
                await self._client.ready()
                return await self._ask(prompt, adapter, sampling)
            except (EngineCrashedError, EngineUnavailableError):
                if attempt + 1 == _MOST_TRIES:
                    raise
        raise AssertionError

    def forget(self, adapter: AdapterRef) -> None:
        """Free an adapter's memory."""
        self._loop.call_soon_threadsafe(self._client.release_adapter, adapter.digest)

    def _end(self) -> None:
        self.run(self._client.stop(grace=_STOP_SECONDS))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _ask(
        self, prompt: SeededPrompt, adapter: AdapterRef | None, sampling: SamplingParams
    ) -> list[SampledAnswer]:
        request = GenerateRequest(
            request_id=uuid.uuid4().hex,
            prompt=prompt.tokens,
            sampling=sampling,
            n=prompt.count,
            adapter=adapter,
            speculation="off",
        )
        parts: list[list[TokenDelta]] = [[] for _ in range(prompt.count)]
        async with aclosing(self._client.generate(request)) as deltas:
            async for delta in deltas:
                parts[delta.index].append(delta)
        return [_joined(deltas_) for deltas_ in parts]


def _joined(deltas: list[TokenDelta]) -> SampledAnswer:
    scores = [entry.logprob for delta in deltas for entry in delta.logprobs or ()]
    tokens = [token for delta in deltas for token in delta.tokens]
    prompt = tuple(entry for delta in deltas for entry in delta.prompt_logprobs or ())
    return SampledAnswer(tuple(tokens), tuple(scores), deltas[-1].stopped_on_token, prompt)
