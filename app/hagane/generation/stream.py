"""One prompt on its way through the engine: from its request to the events of its continuations."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass

from msgspec.structs import replace

from hagane.generation.detokenizer import Detokenizer
from hagane.generation.events import (
    Event,
    Finished,
    ReasoningDelta,
    ToolCallStarted,
    Update,
)
from hagane.generation.parsers.base import Chain
from hagane.generation.stop import NO_STOPS, StopStrings
from hagane.generation.usage import Observer
from hagane.pool.client import EngineClient
from hagane.pool.messages import GenerateRequest, TokenDelta
from hagane.text.tokenizer import Tokenizer


def no_parsers() -> Chain:
    """A chain that leaves all text as it is."""
    return Chain(())


@dataclass(frozen=True)
class Decoding:
    """How tokens become events; `make_chain` makes the parsers of one continuation.

    A continuation ends before it begins more than `most_calls` tool calls.
    """

    tokenizer: Tokenizer
    stop: StopStrings = NO_STOPS
    skip_special_tokens: bool = True
    make_chain: Callable[[], Chain] = no_parsers
    most_calls: int | None = None


async def generate(
    engine: AbstractAsyncContextManager[EngineClient],
    request: GenerateRequest,
    decoding: Decoding,
    observers: Sequence[Observer] = (),
) -> AsyncGenerator[Update, None]:
    """Updates of all continuations as they come; closing the generator cancels the request.

    Raises what `EngineClient.generate` does.
    """
    for observer in observers:
        observer.started(len(request.prompt))
    try:
        async with engine as client, aclosing(_updates(client, request, decoding)) as updates:
            async for delta, update in updates:
                for observer in observers:
                    observer.tokens(delta, update)
                yield update
        for observer in observers:
            observer.finished()
    finally:
        for observer in observers:
            observer.closed()


async def _updates(
    client: EngineClient, request: GenerateRequest, decoding: Decoding
) -> AsyncGenerator[tuple[TokenDelta, Update], None]:
    """(delta, what it brought). A stop string ends a continuation from this side."""
    running = {index: _Continuation(decoding, request) for index in range(request.n)}
    async with aclosing(client.generate(request)) as deltas:
        async for step in deltas:
            for delta in _token_by_token(step):
                continuation = running.get(delta.index)
                if continuation is None:
                    # Tokens computed before the cancellation of this continuation arrived.
                    break
                update = continuation.push(delta)
                if update.finish_reason is not None:
                    del running[delta.index]
                    if delta.finish_reason is None:
                        client.cancel(request.request_id, delta.index)
                yield delta, update
            if not running:
                break


def _token_by_token(delta: TokenDelta) -> Iterator[TokenDelta]:
    """A step's tokens one after the other: where the text ends does not depend on steps."""
    last = len(delta.tokens) - 1
    if last < 1:
        yield delta
        return
    for place, token in enumerate(delta.tokens):
        yield replace(
            delta,
            tokens=(token,),
            logprobs=None if delta.logprobs is None else delta.logprobs[place : place + 1],
            prompt_logprobs=None if place else delta.prompt_logprobs,
            finish_reason=delta.finish_reason if place == last else None,
            stopped_on_token=delta.stopped_on_token and place == last,
        )


class _Continuation:
    """The text side of one continuation."""

    def __init__(self, decoding: Decoding, request: GenerateRequest) -> None:
        self._chain = decoding.make_chain()
        self._text = Detokenizer(
            decoding.tokenizer,
            stop=decoding.stop,
            skip_special_tokens=decoding.skip_special_tokens,
            kept=self._chain.markers,
            min_tokens=request.sampling.min_tokens,
        )
        self._calls = 0
        self._reasoning = False
        self._most_calls = decoding.most_calls

    def push(self, delta: TokenDelta) -> Update:
        visible = delta.tokens[:-1] if delta.stopped_on_token else delta.tokens
        text = self._text.push(visible)
        reason = delta.finish_reason
        if reason is not None:
            text += self._text.finish()
        if self._text.stopped is not None:
            reason = "stop"
        events: list[Event] = self._chain.feed(text) if text else []
        if reason is not None:
            events += self._chain.finish()
        reasoning = self._tell_reasoning(events)
        for place, event in enumerate(events):
            if isinstance(event, ToolCallStarted):
                if self._calls == self._most_calls:
                    events, reason = events[:place], "stop"
                    break
                self._calls += 1
        if reason is not None:
            called = self._calls > 0 and reason == "stop"
            events.append(Finished("tool_calls" if called else reason))
        return Update(
            index=delta.index,
            events=tuple(events),
            tokens=visible,
            logprobs=(delta.logprobs or ())[: len(visible)],
            prompt_logprobs=delta.prompt_logprobs,
            end=delta.logprobs[-1] if delta.stopped_on_token and delta.logprobs else None,
            reasoning_tokens=len(visible) if reasoning else 0,
            stopped=self._text.stopped,
            embedding=delta.embedding,
        )

    def _tell_reasoning(self, events: Sequence[Event]) -> bool:
        """Whether the tokens that brought `events` belong to the reasoning.

        Tokens that bring nothing, such as those of the closing marker, belong to what came before.
        """
        if not events:
            return self._reasoning
        self._reasoning = isinstance(events[-1], ReasoningDelta)
        return any(isinstance(event, ReasoningDelta) for event in events)
