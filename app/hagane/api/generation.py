"""From a request's parameters to the engine, and from its tokens to text. Shared by the routes."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from hagane.api.limits import Account
from hagane.api.schemas import SamplingBody
from hagane.api.serving import ServedModel, Serving, Target
from hagane.api.timeline import Timeline
from hagane.generation.detokenizer import Detokenizer
from hagane.lora.config import adapter_digest
from hagane.pool.messages import (
    AdapterRef,
    FinishReason,
    GenerateRequest,
    SamplingParams,
    TokenDelta,
    TokenLogprobs,
)
from hagane.store.catalogue import Served
from hagane.system.errors import InvalidRequestError
from hagane.system.logging import request_id

_MOST_STOP_STRINGS = 16


@dataclass(frozen=True)
class Piece:
    """New text of one choice; `tokens` are the ids behind it (a held-back end comes later).

    `end` is the token that ended the text without being part of it.
    """

    index: int
    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    finish_reason: FinishReason | None = None
    end: TokenLogprobs | None = None


@dataclass
class Usage:
    """Token counts of one HTTP request, growing while it runs."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def as_json(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(frozen=True)
class Generation:
    """One prompt on its way through the engine."""

    serving: Serving
    target: Target
    account: Account
    request: GenerateRequest
    stop: tuple[str, ...]
    skip_special_tokens: bool
    usage: Usage = field(default_factory=Usage)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Text of all choices as it comes; closing the generator cancels the request."""
        timeline = Timeline(self.serving.metrics)
        self._count_prompt()
        try:
            async with aclosing(self._pieces(timeline)) as pieces:
                async for piece in pieces:
                    yield piece
            timeline.finish()
        finally:
            timeline.trace(
                prompt_tokens=len(self.request.prompt),
                cached_tokens=self.usage.cached_tokens,
                generated_tokens=self.usage.completion_tokens,
            )

    async def _pieces(self, timeline: Timeline) -> AsyncGenerator[Piece, None]:
        texts = {index: self._detokenizer() for index in range(self.request.n)}
        async with (
            self.serving.engine(self.target.served) as engine,
            aclosing(engine.generate(self.request)) as deltas,
        ):
            async for delta in deltas:
                text = texts.get(delta.index)
                if text is None:
                    # Tokens computed before the cancellation of this choice arrived.
                    continue
                timeline.token(delta)
                self._count(delta)
                visible = delta.tokens[:-1] if delta.stopped_on_token else delta.tokens
                piece = text.push(visible)
                reason = delta.finish_reason
                if text.stopped is not None:
                    if reason is None:
                        engine.cancel(self.request.request_id, delta.index)
                    reason = "stop"
                elif reason is not None:
                    piece += text.finish()
                if reason is not None:
                    del texts[delta.index]
                yield Piece(
                    index=delta.index,
                    text=piece,
                    tokens=visible,
                    logprobs=(delta.logprobs or ())[: len(visible)],
                    prompt_logprobs=delta.prompt_logprobs,
                    finish_reason=reason,
                    end=delta.logprobs[-1] if delta.stopped_on_token and delta.logprobs else None,
                )
                if not texts:
                    break

    def _count_prompt(self) -> None:
        tokens = len(self.request.prompt)
        self.usage.prompt_tokens += tokens
        self.serving.metrics.prompt_tokens.inc(tokens)
        if self.request.adapter is not None:
            self.serving.metrics.adapter_requests.labels(self.request.adapter.name).inc()
        self.account.charge("prompt", tokens)

    def _count(self, delta: TokenDelta) -> None:
        tokens = len(delta.tokens)
        # Only the first continuation says so: the others share its prefill.
        self.usage.cached_tokens = max(self.usage.cached_tokens, delta.cached_tokens)
        self.usage.completion_tokens += tokens
        self.serving.metrics.generated_tokens.inc(tokens)
        self.account.charge("generated", tokens)

    def _detokenizer(self) -> Detokenizer:
        return Detokenizer(
            self.target.model.tokenizer,
            stop=self.stop,
            skip_special_tokens=self.skip_special_tokens,
            min_tokens=self.request.sampling.min_tokens,
        )


def build_generation(
    serving: Serving,
    account: Account,
    body: SamplingBody,
    prompt: Sequence[int],
    target: Target,
    *,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
) -> Generation:
    """Raises InvalidRequestError for parameters that do not fit this model or server."""
    settings = serving.settings
    account.check_priority(body.priority)
    n = body.n or 1
    if n > settings.max_sequences:
        raise InvalidRequestError(
            f"'n' is {n}; this server generates at most {settings.max_sequences} at a time.",
            param="n",
        )
    timeout = body.timeout or settings.request_timeout
    request = GenerateRequest(
        # Logs of the engine name the HTTP request; the rest tells its prompts apart.
        request_id=f"{request_id.get()}/{uuid.uuid4().hex[:12]}",
        prompt=tuple(prompt),
        sampling=_sampling(target.model, body, max_tokens, logprobs, prompt_logprobs),
        n=n,
        priority=body.priority,
        deadline=None if timeout is None else time.monotonic() + timeout,
        cache_salt=body.cache_salt,
        adapter=_adapter(target.served),
    )
    stop = _stop_strings(body)
    return Generation(serving, target, account, request, stop, body.skip_special_tokens)


def _adapter(model: Served) -> AdapterRef | None:
    if model.adapter_directory is None:
        return None
    digest = model.digest or adapter_digest(model.adapter_directory)
    return AdapterRef(model.id, str(model.adapter_directory), digest)


def _sampling(
    model: ServedModel,
    body: SamplingBody,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> SamplingParams:
    defaults = model.defaults
    vocab = model.config.vocab_size
    bias = body.logit_bias or {}
    for name, ids in (("logit_bias", list(bias)), ("stop_token_ids", body.stop_token_ids or [])):
        if bad := [i for i in ids if not 0 <= i < vocab]:
            raise InvalidRequestError(
                f"'{name}' has token id {bad[0]}, outside the vocabulary of {vocab} tokens.",
                param=name,
            )
    if body.min_tokens > max_tokens:
        raise InvalidRequestError(
            f"'min_tokens' is {body.min_tokens}, more than the {max_tokens} tokens of room.",
            param="min_tokens",
        )

    def either(value: float | None, default: float) -> float:
        return default if value is None else value

    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=body.min_tokens,
        temperature=either(body.temperature, defaults.temperature),
        top_p=either(body.top_p, defaults.top_p),
        top_k=max(int(either(body.top_k, defaults.top_k)), 0),
        min_p=body.min_p or 0.0,
        repetition_penalty=either(body.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=bias,
        seed=body.seed,
        eos_token_ids=defaults.eos_token_ids,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=body.ignore_eos,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def _stop_strings(body: SamplingBody) -> tuple[str, ...]:
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stop) > _MOST_STOP_STRINGS or "" in stop:
        raise InvalidRequestError(
            f"'stop' takes up to {_MOST_STOP_STRINGS} strings, none of them empty.", param="stop"
        )
    return tuple(stop)
